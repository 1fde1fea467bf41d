// Four floats in standard C++: the compiler makes of it what the machine's base instructions allow.
#pragma once

#include <cstdint>

#include "stored.h"

namespace moeify::plain {

struct Vec {
  static constexpr int lanes = 4;
  float v[4];
};

struct Mask {
  bool m[4];
};

template <class F>
inline Vec each(F f) {
  return {{f(0), f(1), f(2), f(3)}};
}

inline Vec splat(float a) { return {{a, a, a, a}}; }
inline Vec zero() { return splat(0.0f); }
template <class W>
inline Vec load(const W* p) {
  return each([&](int i) { return read(p + i); });
}
// The first n < 4 values, then zeros; reads no further.
template <class W>
inline Vec load_part(const W* p, std::int64_t n) {
  return each([&](int i) { return i < n ? read(p + i) : 0.0f; });
}
inline void store_part(float* p, Vec a, std::int64_t n) {
  for (std::int64_t i = 0; i < n; ++i) p[i] = a.v[i];
}
inline void store(float* p, Vec a) { store_part(p, a, 4); }

inline Vec operator+(Vec a, Vec b) {
  return each([&](int i) { return a.v[i] + b.v[i]; });
}
inline Vec operator-(Vec a, Vec b) {
  return each([&](int i) { return a.v[i] - b.v[i]; });
}
inline Vec operator*(Vec a, Vec b) {
  return each([&](int i) { return a.v[i] * b.v[i]; });
}
inline Vec operator/(Vec a, Vec b) {
  return each([&](int i) { return a.v[i] / b.v[i]; });
}
#if defined(__FP_FAST_FMAF)
inline Vec fma(Vec a, Vec b, Vec c) {
  return each([&](int i) { return __builtin_fmaf(a.v[i], b.v[i], c.v[i]); });
}
#else
inline Vec fma(Vec a, Vec b, Vec c) { return a * b + c; }  // rounds twice
#endif
// a b - product, exact: double holds the product of two floats.
inline Vec product_error(Vec a, Vec b, Vec product) {
  return each([&](int i) { return static_cast<float>(static_cast<double>(a.v[i]) * b.v[i] - product.v[i]); });
}
inline Vec absolute(Vec a) {
  return each([&](int i) { return from_bits(to_bits(a.v[i]) & 0x7fffffffu); });
}
inline Mask operator<(Vec a, Vec b) { return {{a.v[0] < b.v[0], a.v[1] < b.v[1], a.v[2] < b.v[2], a.v[3] < b.v[3]}}; }
inline Mask operator>(Vec a, Vec b) { return b < a; }
inline Vec choose(Mask m, Vec yes, Vec no) {
  return each([&](int i) { return m.m[i] ? yes.v[i] : no.v[i]; });
}
// Where a is NaN so is the result.
inline Vec at_least(Vec a, float low) {
  return each([&](int i) { return low > a.v[i] ? low : a.v[i]; });
}
inline Vec at_most(Vec a, float high) {
  return each([&](int i) { return high < a.v[i] ? high : a.v[i]; });
}
inline float nearest_of(float a) {
  const float magic = 12582912.0f;  // 1.5 2^23: the sum has no bits left for a fraction
  return a > -4194304.0f && a < 4194304.0f ? (a + magic) - magic : a;
}
inline Vec nearest(Vec a) {
  return each([&](int i) { return nearest_of(a.v[i]); });
}
inline float power(std::int32_t n) { return from_bits(static_cast<std::uint32_t>(n + 127) << 23); }
// a 2^n, |n| < 252: in two steps, as 2^n itself may be out of range. NaN gives NaN through a.
inline Vec times_power(Vec a, Vec n) {
  return each([&](int i) {
    const std::int32_t whole = n.v[i] == n.v[i] ? static_cast<std::int32_t>(n.v[i]) : 0, half = whole / 2;
    return a.v[i] * power(half) * power(whole - half);
  });
}

// The sums of the lanes of a, b, c, d, one behind the other.
inline void store_sums(float* p, Vec a, Vec b, Vec c, Vec d) {
  const Vec* all[4] = {&a, &b, &c, &d};
  for (int i = 0; i < 4; ++i) p[i] = (all[i]->v[0] + all[i]->v[1]) + (all[i]->v[2] + all[i]->v[3]);
}

#include "prefetch_plain.h"

}  // namespace moeify::plain
