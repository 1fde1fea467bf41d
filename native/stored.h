// Weights of 16 bits, and their conversion one by one (the vector headers convert many at once).
#pragma once

#include <cstdint>
#include <cstring>

namespace moeify {

struct Half {
  std::uint16_t bits;
};

struct BFloat {
  std::uint16_t bits;
};

inline float from_bits(std::uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline std::uint32_t to_bits(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float widen(float value) { return value; }

inline float widen(BFloat value) { return from_bits(static_cast<std::uint32_t>(value.bits) << 16); }

inline float widen(Half value) {
  const std::uint32_t sign = (value.bits & 0x8000u) << 16, exponent = (value.bits >> 10) & 31u, fraction = value.bits & 0x3ffu;
  if (exponent == 31) return from_bits(sign | 0x7f800000u | (fraction << 13));
  if (exponent) return from_bits(sign | ((exponent + 112) << 23) | (fraction << 13));
  const float small = static_cast<float>(fraction) * 5.9604644775390625e-8f;  // 2^-24
  return sign ? -small : small;
}

// A stored value that may lie at any address: external data of a file need not be aligned.
template <class W>
inline float read(const W* p) {
  W value;
  std::memcpy(&value, static_cast<const void*>(p), sizeof value);
  return widen(value);
}

// To the nearest, ties to even; NaN stays NaN.
inline void narrow(float value, float& out) { out = value; }

inline void narrow(float value, BFloat& out) {
  const std::uint32_t bits = to_bits(value);
  const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
  out.bits = static_cast<std::uint16_t>(nan ? (bits >> 16) | 0x40u : (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

inline void narrow(float value, Half& out) {
  const std::uint32_t bits = to_bits(value), sign = (bits >> 16) & 0x8000u, size = bits & 0x7fffffffu;
  if (size > 0x7f800000u) {
    out.bits = static_cast<std::uint16_t>(sign | 0x7e00u);
  } else if (size >= 0x477ff000u) {  // rounds to 65520 or more
    out.bits = static_cast<std::uint16_t>(sign | 0x7c00u);
  } else if (size < 0x38800000u) {  // below 2^-14: adding 2^-1 leaves the fraction in the lowest bits, rounded
    out.bits = static_cast<std::uint16_t>(sign | (to_bits(from_bits(size) + 0.5f) - 0x3f000000u));
  } else {
    out.bits = static_cast<std::uint16_t>(sign | ((size - 0x38000000u + 0xfffu + ((size >> 13) & 1u)) >> 13));
  }
}

}  // namespace moeify
