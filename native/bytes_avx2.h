// Thirty-two bytes and eight integers in registers of AVX2.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace moeify::avx2 {

struct Bytes {
  static constexpr int size = 32;
  __m256i v;
};

// One lane for each four bytes.
struct Ints {
  __m256i v;
};

// Bytes as weights, ready for several products: w - 128 and its absolute value.
struct Weights {
  __m256i signs, sizes;
};

inline Bytes load_bytes(const void* p) { return {_mm256_loadu_si256(static_cast<const __m256i*>(p))}; }
// The first n bytes, then zeros; reads no further.
inline Bytes load_bytes_part(const void* p, std::int64_t n) {
  alignas(32) char bytes[32] = {};
  std::memcpy(bytes, p, static_cast<std::size_t>(n));
  return load_bytes(bytes);
}
inline void store_bytes(std::uint8_t* p, Bytes a) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), a.v); }
// The same four bytes everywhere.
inline Bytes splat_four(const std::int8_t* p) {
  std::int32_t four;
  std::memcpy(&four, p, 4);
  return {_mm256_set1_epi32(four)};
}

inline Ints splat_int(std::int32_t a) { return {_mm256_set1_epi32(a)}; }
inline Ints load_ints(const std::int32_t* p) { return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))}; }
inline void store_ints(std::int32_t* p, Ints a) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), a.v); }

inline Weights weights_of(Bytes a) {
  const __m256i w = _mm256_xor_si256(a.v, _mm256_set1_epi8(-128));
  return {w, _mm256_abs_epi8(w)};
}
// Whether the sums of `dot` are 128 times the sum of x too large.
constexpr bool kShifted = false;
// sum + (w - 128) . x in each lane; x is signed, from -127 on. |w - 128| x sign: two products are at most 2 * 128 * 127, which 16
// bits hold.
inline Ints dot(Ints sum, const Weights& w, Bytes x) {
  const __m256i pairs = _mm256_maddubs_epi16(w.sizes, _mm256_sign_epi8(x.v, w.signs));
  return {_mm256_add_epi32(sum.v, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))};
}

// Four rows => in each lane of out[j] the four bytes of one column ..
inline void interleave(const Bytes (&rows)[4], Bytes (&out)[4]) {
  const __m256i a = _mm256_unpacklo_epi8(rows[0].v, rows[1].v), b = _mm256_unpackhi_epi8(rows[0].v, rows[1].v),
                c = _mm256_unpacklo_epi8(rows[2].v, rows[3].v), d = _mm256_unpackhi_epi8(rows[2].v, rows[3].v);
  out[0] = {_mm256_unpacklo_epi16(a, c)};
  out[1] = {_mm256_unpackhi_epi16(a, c)};
  out[2] = {_mm256_unpacklo_epi16(b, d)};
  out[3] = {_mm256_unpackhi_epi16(b, d)};
}
// .. and, of such four, in the order of the columns.
template <class Register>
inline void in_order(Register (&r)[4]) {
  const __m256i a = r[0].v, b = r[1].v, c = r[2].v, d = r[3].v;
  r[0] = {_mm256_permute2x128_si256(a, b, 0x20)};
  r[1] = {_mm256_permute2x128_si256(c, d, 0x20)};
  r[2] = {_mm256_permute2x128_si256(a, b, 0x31)};
  r[3] = {_mm256_permute2x128_si256(c, d, 0x31)};
}

// Lane j of register i => lane i of register j.
inline void transpose(Bytes (&r)[8]) {
  __m256i pairs[8], quads[8];
  for (int i = 0; i < 8; i += 2) {
    pairs[i] = _mm256_unpacklo_epi32(r[i].v, r[i + 1].v);
    pairs[i + 1] = _mm256_unpackhi_epi32(r[i].v, r[i + 1].v);
  }
  for (int i = 0; i < 8; i += 4)
    for (int j = 0; j < 2; ++j) {
      quads[i + 2 * j] = _mm256_unpacklo_epi64(pairs[i + j], pairs[i + j + 2]);
      quads[i + 2 * j + 1] = _mm256_unpackhi_epi64(pairs[i + j], pairs[i + j + 2]);
    }
  for (int j = 0; j < 4; ++j) {
    r[j] = {_mm256_permute2x128_si256(quads[j], quads[j + 4], 0x20)};
    r[j + 4] = {_mm256_permute2x128_si256(quads[j], quads[j + 4], 0x31)};
  }
}

// y[i] += sums[i] * step
inline void add_scaled(float* y, Ints sums, float step) {
  _mm256_storeu_ps(y, _mm256_add_ps(_mm256_loadu_ps(y), _mm256_mul_ps(_mm256_cvtepi32_ps(sums.v), _mm256_set1_ps(step))));
}

// The sums of the lanes of a, b, c, d, one behind the other.
inline void store_sums(std::int32_t* p, Ints a, Ints b, Ints c, Ints d) {
  const __m256i four = _mm256_hadd_epi32(_mm256_hadd_epi32(a.v, b.v), _mm256_hadd_epi32(c.v, d.v));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm_add_epi32(_mm256_castsi256_si128(four), _mm256_extracti128_si256(four, 1)));
}

#include "prefetch_x86.h"

}  // namespace moeify::avx2
