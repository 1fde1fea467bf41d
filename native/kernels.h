// The inner loops that exist once an instruction set. All run on one thread and own nothing.
#pragma once

#include <cstdint>
#include <vector>

#include "layer.h"

namespace moeify {

// Memory that will be read next: each step of an inner loop asks the cache for `step` bytes more, up to `end`.
struct Ahead {
  const char* at;
  const char* end;
};

// h[t, r] = x[tokens[t]] . weights[r] + bias[r] for t < count, r < rows.
struct Projection {
  const float* x;               // rows at a distance of x_stride
  std::int64_t x_stride;
  const std::int32_t* tokens;   // which rows of x; null: 0, 1, 2 ..
  std::int64_t count;
  const void* weights;          // [rows, hidden]
  const float* bias;            // [rows] or null
  std::int64_t rows, hidden;
  float* h;                     // rows at a distance of h_stride
  std::int64_t h_stride;
  Ahead ahead;
};

// y[tokens[t], c] += sum over r of h[t, r] weights[r, c] for t < count, c < columns; r in ascending order.
struct Accumulation {
  const float* h;
  std::int64_t h_stride;
  const std::int32_t* tokens;  // which rows of y; null: 0, 1, 2 ..
  std::int64_t count;
  const void* weights;         // rows at a distance of `output`, from the first column on
  std::int64_t rows, columns, output;
  float* y;                    // rows at a distance of `output`, from the first column on
  Ahead ahead;
};

// Rows of bytes, each with a step: a value is the byte times the step. shift: 128 times the sum of a row, or 0 (Integers).
struct Bytes8 {
  std::int8_t* values;  // rows at a distance of `stride`, which zeros fill
  std::int64_t stride;
  float* step;
  std::int32_t* shift;
};

// h[t, r] = x[tokens[t]] . (weights[r] - 128) * scale[r] + bias[r]: the sum in integers.
struct Projection8 {
  Bytes8 x;                    // stride: a multiple of kBytesRow
  const std::int32_t* tokens;  // which rows of x; null: 0, 1, 2 ..
  std::int64_t count;
  const std::uint8_t* weights;  // [rows, hidden]
  const float* scale;           // [rows]
  const float* bias;            // [rows] or null
  std::int64_t rows, hidden;
  float* h;  // rows at a distance of h_stride
  std::int64_t h_stride;
  Ahead ahead;
  std::vector<std::uint8_t>* room;  // of the calling thread
};

// y[tokens[t], c] += h[t] . (column c of weights - 128), for all rows of a group: the sum in integers.
struct Accumulation8 {
  Bytes8 h;  // stride: a multiple of 4
  const std::int32_t* tokens;  // which rows of y; null: 0, 1, 2 ..
  std::int64_t count;
  const std::uint8_t* weights;  // rows at a distance of `output`, from the first column on
  std::int64_t rows, columns, output;
  float* y;  // rows at a distance of `output`, from the first column on
  Ahead ahead;
  std::vector<std::uint8_t>* room;  // of the calling thread
};

constexpr std::int64_t kBytesRow = 64;

// The inner loops for integers; the sums are exact, so that all instruction sets give the same.
struct Integers {
  const char* name;
  // Row t of `count` rows of `width` floats => bytes, the largest of a row as 127; a row that is not all finite gets the step NaN.
  void (*round)(const float* values, std::int64_t width, Bytes8 to, std::int64_t t);
  // values[i] *= factors[i]
  void (*scale)(float* values, const float* factors, std::int64_t n);
  void (*project)(const Projection8&);
  void (*accumulate)(const Accumulation8&);
  // 4 bits: n weights (a multiple of kBlock) with their scales => floats.
  void (*restore)(const std::uint8_t* from, const float* scale, std::int64_t n, float* to);
};

extern const Integers kIntegersPlain;
#if defined(MOEIFY_X86)
extern const Integers kIntegersAvx2;
extern const Integers kIntegersVnni;
#endif

// As best_kernels; AVX-512 without VNNI takes the loops of AVX2.
const Integers& best_integers();

struct Kernels {
  const char* name;
  int column_block;  // an accumulation is fastest when `columns` is a multiple of this
  // Indexed by Stored.
  void (*project[3])(const Projection&);
  void (*accumulate[3])(const Accumulation&);
  // h[i] = act(h[i]) * other[i] * gate, i < n; other may be null. Indexed by Activation.
  void (*const* finish)(float* h, const float* other, float gate, std::int64_t n);
};

extern const Kernels kPlain;
#if defined(MOEIFY_X86)
extern const Kernels kAvx2;
extern const Kernels kAvx512;
#endif

// The fastest that this processor can run; MOEIFY_NATIVE_ISA (plain, avx2, avx512) asks for less.
const Kernels& best_kernels();

}  // namespace moeify
