// The inner loops that exist once an instruction set. All run on one thread and own nothing.
#pragma once

#include <cstdint>

#include "layer.h"

namespace moeify {

// Memory that will be read next: each step of an inner loop asks the cache for `step` bytes more, up to `end`.
struct Ahead {
  const char* at;
  const char* end;
};

// h[t, r] = x[tokens[t]] . weights[r] + bias[r] for t < count, r < rows.
struct Projection {
  const float* x;               // [.., hidden]
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
