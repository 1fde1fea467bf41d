// Sixteen floats in a register of AVX-512 (F, BW, DQ, VL).
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "stored.h"

namespace moeify::avx512 {

struct Vec {
  static constexpr int lanes = 16;
  __m512 v;
};

struct Mask {
  __mmask16 m;
};

inline Vec splat(float a) { return {_mm512_set1_ps(a)}; }
inline Vec zero() { return {_mm512_setzero_ps()}; }
inline Vec load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline Vec load(const Half* p) { return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))}; }
inline __m512 widen16(__m256i bits) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16)); }
inline Vec load(const BFloat* p) { return {widen16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))}; }

// The first n < 16 values, then zeros; reads no further.
inline __mmask16 first(std::int64_t n) { return static_cast<__mmask16>((1u << n) - 1u); }
inline Vec load_part(const float* p, std::int64_t n) { return {_mm512_maskz_loadu_ps(first(n), p)}; }
inline Vec load_part(const Half* p, std::int64_t n) { return {_mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first(n), p))}; }
inline Vec load_part(const BFloat* p, std::int64_t n) { return {widen16(_mm256_maskz_loadu_epi16(first(n), p))}; }
inline void store(float* p, Vec a) { _mm512_storeu_ps(p, a.v); }
inline void store_part(float* p, Vec a, std::int64_t n) { _mm512_mask_storeu_ps(p, first(n), a.v); }

inline Vec operator+(Vec a, Vec b) { return {_mm512_add_ps(a.v, b.v)}; }
inline Vec operator-(Vec a, Vec b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline Vec operator*(Vec a, Vec b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline Vec operator/(Vec a, Vec b) { return {_mm512_div_ps(a.v, b.v)}; }
inline Vec fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }  // a b + c
inline Vec product_error(Vec a, Vec b, Vec product) { return {_mm512_fmsub_ps(a.v, b.v, product.v)}; }  // a b - product, exact
inline Vec absolute(Vec a) { return {_mm512_abs_ps(a.v)}; }
inline Mask operator<(Vec a, Vec b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ)}; }
inline Mask operator>(Vec a, Vec b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_GT_OQ)}; }
inline Vec choose(Mask m, Vec yes, Vec no) { return {_mm512_mask_blend_ps(m.m, no.v, yes.v)}; }
// Where a is NaN so is the result.
inline Vec at_least(Vec a, float low) { return {_mm512_max_ps(_mm512_set1_ps(low), a.v)}; }
inline Vec at_most(Vec a, float high) { return {_mm512_min_ps(_mm512_set1_ps(high), a.v)}; }
inline Vec nearest(Vec a) { return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
inline Vec times_power(Vec a, Vec n) { return {_mm512_scalef_ps(a.v, n.v)}; }  // a 2^n

// The sums of the lanes of a, b, c, d, one behind the other.
inline void store_sums(float* p, Vec a, Vec b, Vec c, Vec d) {
  const auto halve = [](__m512 l, __m512 r) {
    return _mm512_add_ps(_mm512_shuffle_f32x4(l, r, 0x88), _mm512_shuffle_f32x4(l, r, 0xdd));
  };
  __m512 all = halve(halve(a.v, b.v), halve(c.v, d.v));  // the blocks of 128 bits are of a, b, c, d
  all = _mm512_add_ps(all, _mm512_permute_ps(all, 0x4e));
  all = _mm512_add_ps(all, _mm512_permute_ps(all, 0xb1));
  const __m512i firsts = _mm512_set_epi32(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 12, 8, 4, 0);
  _mm_storeu_ps(p, _mm512_castps512_ps128(_mm512_permutexvar_ps(firsts, all)));
}

#include "prefetch_x86.h"

}  // namespace moeify::avx512
