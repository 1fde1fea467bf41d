// Eight floats in a register of AVX2, with FMA and F16C.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "stored.h"

namespace moeify::avx2 {

struct Vec {
  static constexpr int lanes = 8;
  __m256 v;
};

struct Mask {
  __m256 m;
};

inline Vec splat(float a) { return {_mm256_set1_ps(a)}; }
inline Vec zero() { return {_mm256_setzero_ps()}; }
inline Vec load(const float* p) { return {_mm256_loadu_ps(p)}; }
inline Vec load(const Half* p) { return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))}; }
inline Vec load(const BFloat* p) {
  const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  return {_mm256_castsi256_ps(_mm256_slli_epi32(wide, 16))};
}

// The first n < 8 values, then zeros; reads no further.
template <class W>
inline Vec load_part(const W* p, std::int64_t n) {
  float values[8] = {};
  for (std::int64_t i = 0; i < n; ++i) values[i] = read(p + i);
  return load(values);
}
inline void store(float* p, Vec a) { _mm256_storeu_ps(p, a.v); }
inline void store_part(float* p, Vec a, std::int64_t n) {
  float values[8];
  store(values, a);
  for (std::int64_t i = 0; i < n; ++i) p[i] = values[i];
}

inline Vec operator+(Vec a, Vec b) { return {_mm256_add_ps(a.v, b.v)}; }
inline Vec operator-(Vec a, Vec b) { return {_mm256_sub_ps(a.v, b.v)}; }
inline Vec operator*(Vec a, Vec b) { return {_mm256_mul_ps(a.v, b.v)}; }
inline Vec operator/(Vec a, Vec b) { return {_mm256_div_ps(a.v, b.v)}; }
inline Vec fma(Vec a, Vec b, Vec c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }  // a b + c
inline Vec product_error(Vec a, Vec b, Vec product) { return {_mm256_fmsub_ps(a.v, b.v, product.v)}; }  // a b - product, exact
inline Vec absolute(Vec a) { return {_mm256_andnot_ps(_mm256_set1_ps(-0.0f), a.v)}; }
inline Mask operator<(Vec a, Vec b) { return {_mm256_cmp_ps(a.v, b.v, _CMP_LT_OQ)}; }
inline Mask operator>(Vec a, Vec b) { return {_mm256_cmp_ps(a.v, b.v, _CMP_GT_OQ)}; }
inline Vec choose(Mask m, Vec yes, Vec no) { return {_mm256_blendv_ps(no.v, yes.v, m.m)}; }
// Where a is NaN so is the result.
inline Vec at_least(Vec a, float low) { return {_mm256_max_ps(_mm256_set1_ps(low), a.v)}; }
inline Vec at_most(Vec a, float high) { return {_mm256_min_ps(_mm256_set1_ps(high), a.v)}; }
inline Vec nearest(Vec a) { return {_mm256_round_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }

inline Vec power(__m256i n) {
  return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23))};
}
// a 2^n, |n| < 252: in two steps, as 2^n itself may be out of range.
inline Vec times_power(Vec a, Vec n) {
  const __m256i whole = _mm256_cvtps_epi32(n.v), half = _mm256_srai_epi32(whole, 1);
  return a * power(half) * power(_mm256_sub_epi32(whole, half));
}

// The sums of the lanes of a, b, c, d, one behind the other.
inline void store_sums(float* p, Vec a, Vec b, Vec c, Vec d) {
  const __m256 four = _mm256_hadd_ps(_mm256_hadd_ps(a.v, b.v), _mm256_hadd_ps(c.v, d.v));
  _mm_storeu_ps(p, _mm_add_ps(_mm256_castps256_ps128(four), _mm256_extractf128_ps(four, 1)));
}

#include "prefetch_x86.h"

}  // namespace moeify::avx2
