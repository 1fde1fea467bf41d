// Sixty-four bytes and sixteen integers in registers of AVX-512 with VNNI.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace moeify::vnni {

struct Bytes {
  static constexpr int size = 64;
  __m512i v;
};

// One lane for each four bytes.
struct Ints {
  __m512i v;
};

// Bytes as weights, ready for several products.
using Weights = Bytes;

inline Bytes load_bytes(const void* p) { return {_mm512_loadu_si512(p)}; }
// The first n < 64 bytes, then zeros; reads no further.
inline Bytes load_bytes_part(const void* p, std::int64_t n) { return {_mm512_maskz_loadu_epi8((1ull << n) - 1, p)}; }
inline void store_bytes(std::uint8_t* p, Bytes a) { _mm512_storeu_si512(p, a.v); }
// The same four bytes everywhere.
inline Bytes splat_four(const std::int8_t* p) {
  std::int32_t four;
  std::memcpy(&four, p, 4);
  return {_mm512_set1_epi32(four)};
}

inline Ints splat_int(std::int32_t a) { return {_mm512_set1_epi32(a)}; }
inline Ints load_ints(const std::int32_t* p) { return {_mm512_loadu_si512(p)}; }
inline void store_ints(std::int32_t* p, Ints a) { _mm512_storeu_si512(p, a.v); }

inline Weights weights_of(Bytes a) { return a; }
// Whether the sums of `dot` are 128 times the sum of x too large.
constexpr bool kShifted = true;
// sum + w . x in each lane, modulo 2^32; x is signed.
// Written down, as GCC 12 makes copies of the sums around its intrinsic and runs out of registers.
inline Ints dot(Ints sum, Weights w, Bytes x) {
#if defined(__GNUC__)
  __asm__("vpdpbusd %2, %1, %0" : "+v"(sum.v) : "v"(w.v), "v"(x.v));
  return sum;
#else
  return {_mm512_dpbusd_epi32(sum.v, w.v, x.v)};
#endif
}

// Four rows => in each lane of out[j] the four bytes of one column ..
inline void interleave(const Bytes (&rows)[4], Bytes (&out)[4]) {
  const __m512i a = _mm512_unpacklo_epi8(rows[0].v, rows[1].v), b = _mm512_unpackhi_epi8(rows[0].v, rows[1].v),
                c = _mm512_unpacklo_epi8(rows[2].v, rows[3].v), d = _mm512_unpackhi_epi8(rows[2].v, rows[3].v);
  out[0] = {_mm512_unpacklo_epi16(a, c)};
  out[1] = {_mm512_unpackhi_epi16(a, c)};
  out[2] = {_mm512_unpacklo_epi16(b, d)};
  out[3] = {_mm512_unpackhi_epi16(b, d)};
}
// .. and, of such four, in the order of the columns: blocks of four, transposed.
template <class Register>
inline void in_order(Register (&r)[4]) {
  const __m512i a = _mm512_shuffle_i32x4(r[0].v, r[1].v, 0x44), b = _mm512_shuffle_i32x4(r[2].v, r[3].v, 0x44),
                c = _mm512_shuffle_i32x4(r[0].v, r[1].v, 0xee), d = _mm512_shuffle_i32x4(r[2].v, r[3].v, 0xee);
  r[0] = {_mm512_shuffle_i32x4(a, b, 0x88)};
  r[1] = {_mm512_shuffle_i32x4(a, b, 0xdd)};
  r[2] = {_mm512_shuffle_i32x4(c, d, 0x88)};
  r[3] = {_mm512_shuffle_i32x4(c, d, 0xdd)};
}

// Lane j of register i => lane i of register j: within blocks of 128 bits, then the blocks.
inline void transpose(Bytes (&r)[16]) {
  for (int i = 0; i < 16; i += 4) {
    const __m512i a = _mm512_unpacklo_epi32(r[i].v, r[i + 1].v), b = _mm512_unpackhi_epi32(r[i].v, r[i + 1].v),
                  c = _mm512_unpacklo_epi32(r[i + 2].v, r[i + 3].v), d = _mm512_unpackhi_epi32(r[i + 2].v, r[i + 3].v);
    r[i] = {_mm512_unpacklo_epi64(a, c)};
    r[i + 1] = {_mm512_unpackhi_epi64(a, c)};
    r[i + 2] = {_mm512_unpacklo_epi64(b, d)};
    r[i + 3] = {_mm512_unpackhi_epi64(b, d)};
  }
  for (int j = 0; j < 4; ++j) {
    Bytes blocks[4] = {r[j], r[j + 4], r[j + 8], r[j + 12]};
    in_order(blocks);
    for (int i = 0; i < 4; ++i) r[j + 4 * i] = blocks[i];
  }
}

// y[i] += sums[i] * step
inline void add_scaled(float* y, Ints sums, float step) {
  _mm512_storeu_ps(y, _mm512_add_ps(_mm512_loadu_ps(y), _mm512_mul_ps(_mm512_cvtepi32_ps(sums.v), _mm512_set1_ps(step))));
}

// The sums of the lanes of a, b, c, d, one behind the other.
inline void store_sums(std::int32_t* p, Ints a, Ints b, Ints c, Ints d) {
  const auto halve = [](__m512i l, __m512i r) {
    return _mm512_add_epi32(_mm512_shuffle_i32x4(l, r, 0x88), _mm512_shuffle_i32x4(l, r, 0xdd));
  };
  __m512i all = halve(halve(a.v, b.v), halve(c.v, d.v));  // the blocks of 128 bits are of a, b, c, d
  all = _mm512_add_epi32(all, _mm512_shuffle_epi32(all, _MM_PERM_BADC));
  all = _mm512_add_epi32(all, _mm512_shuffle_epi32(all, _MM_PERM_CDAB));
  const __m512i firsts = _mm512_set_epi32(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 12, 8, 4, 0);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_castsi512_si128(_mm512_permutexvar_epi32(firsts, all)));
}

#include "prefetch_x86.h"

}  // namespace moeify::vnni
