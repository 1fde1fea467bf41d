// Sixteen bytes and four integers in standard C++.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

namespace moeify::plain {

struct Bytes {
  static constexpr int size = 16;
  std::uint8_t v[16];
};

// One lane for each four bytes.
struct Ints {
  std::int32_t v[4];
};

// Bytes as weights, ready for several products.
struct Weights {
  std::int8_t v[16];
};

inline Bytes load_bytes(const void* p) {
  Bytes a;
  std::memcpy(a.v, p, sizeof a.v);
  return a;
}
// The first n bytes, then zeros; reads no further.
inline Bytes load_bytes_part(const void* p, std::int64_t n) {
  Bytes a{};
  std::memcpy(a.v, p, static_cast<std::size_t>(n));
  return a;
}
inline void store_bytes(std::uint8_t* p, Bytes a) { std::memcpy(p, a.v, sizeof a.v); }
// The same four bytes everywhere.
inline Bytes splat_four(const std::int8_t* p) {
  Bytes a;
  for (int i = 0; i < 16; ++i) a.v[i] = static_cast<std::uint8_t>(p[i % 4]);
  return a;
}

inline Ints splat_int(std::int32_t a) { return {{a, a, a, a}}; }
inline Ints load_ints(const std::int32_t* p) {
  Ints a;
  std::memcpy(a.v, p, sizeof a.v);
  return a;
}
inline void store_ints(std::int32_t* p, Ints a) { std::memcpy(p, a.v, sizeof a.v); }

inline Weights weights_of(Bytes a) {
  Weights w;
  for (int i = 0; i < 16; ++i) w.v[i] = static_cast<std::int8_t>(a.v[i] ^ 0x80u);
  return w;
}
// Whether the sums of `dot` are 128 times the sum of x too large.
constexpr bool kShifted = false;
// sum + (w - 128) . x in each lane; x is signed.
inline Ints dot(Ints sum, const Weights& w, Bytes x) {
  for (int i = 0; i < 16; ++i) sum.v[i / 4] += w.v[i] * static_cast<std::int8_t>(x.v[i]);
  return sum;
}

// Four rows => in each lane of out[j] the four bytes of one column, a column of block 4 i + j in lane i of out[j] ..
inline void interleave(const Bytes (&rows)[4], Bytes (&out)[4]) {
  for (int j = 0; j < 4; ++j)
    for (int i = 0; i < 4; ++i)
      for (int r = 0; r < 4; ++r) out[j].v[4 * i + r] = rows[r].v[4 * j + i];
}
// .. and, of such four, in the order of the columns.
template <class Register>
inline void in_order(Register (&)[4]) {}

// Lane j of register i => lane i of register j.
inline void transpose(Bytes (&r)[4]) {
  for (int i = 0; i < 4; ++i)
    for (int j = 0; j < i; ++j)
      for (int b = 0; b < 4; ++b) std::swap(r[i].v[4 * j + b], r[j].v[4 * i + b]);
}

// y[i] += sums[i] * step
inline void add_scaled(float* y, Ints sums, float step) {
  for (int i = 0; i < 4; ++i) y[i] += static_cast<float>(sums.v[i]) * step;
}

// The sums of the lanes of a, b, c, d, one behind the other.
inline void store_sums(std::int32_t* p, Ints a, Ints b, Ints c, Ints d) {
  const Ints* all[4] = {&a, &b, &c, &d};
  for (int i = 0; i < 4; ++i) p[i] = all[i]->v[0] + all[i]->v[1] + all[i]->v[2] + all[i]->v[3];
}

#include "prefetch_plain.h"

}  // namespace moeify::plain
