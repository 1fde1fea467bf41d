// What a call has to do: which rows on which tokens, in which pieces.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "choice.h"
#include "kernels.h"
#include "layer.h"

namespace moeify {

// A run of rows with the tokens that it works on: the shared expert, a routed expert, the low-rank term, the idle vectors.
struct Group {
  const void *up, *gate, *down;  // their first row; up is null where h is given
  int bits;                      // of a weight; 8 and 4 are integers
  const float *up_scale, *gate_scale, *down_scale;
  const float *up_bias, *gate_bias;
  Activation activation;
  std::int64_t rows, count;
  const std::int32_t* tokens;  // null: all
  const float* gates;          // null: 1
  float *h, *other;            // [count, rows]; other: the up part of gated neurons
  Bytes8 bytes;                // of 8 bits: h times the scales of down, rounded
};

// Rows [row, row + rows) of a group on its tokens [first, first + count).
struct Task {
  std::int32_t group;
  std::int64_t row, rows, first, count;
};

// What a call needs beside its inputs; kept from call to call, one for each call that is under way.
struct Scratch {
  ChoiceScratch choosing;
  Choice choice;
  std::vector<Group> groups;
  std::vector<Task> tasks;
  std::vector<float> hidden;
  std::vector<float> apart;          // x, where its rows do not serve as they lie (rows_apart)
  std::vector<std::int8_t> rounded;  // x, then h of each group of 8 bits
  std::vector<float> steps;
  std::vector<std::int32_t> shifts;
  Bytes8 x;
};

// Groups and tasks of `count` tokens, from scratch.choice; places their h in scratch.hidden.
void make_plan(const Layer& layer, std::int64_t count, Scratch& scratch);

// How many tokens at a time, so that h stays in bounds.
std::int64_t tokens_at_once(const Layer& layer);

// Rows of that many columns whose weights stay in the cache while tokens pass.
std::int64_t rows_at_once(int bits, std::int64_t columns);

// The distance of rows of x that are read together; where it is not `hidden`, x is copied first. Rows that lie whole pages apart
// share their lines of the first cache.
std::int64_t rows_apart(const Layer& layer, std::int64_t count);

// Weights [row, row + rows) x columns as bytes.
Ahead rows_of(int bits, const void* matrix, std::int64_t row, std::int64_t rows, std::int64_t columns);

// The rows of `down` that come from that row of that group on, in it or in the next; at the end an empty run.
Ahead next_down(const Layer& layer, const Scratch& scratch, std::size_t group, std::int64_t row);

inline const void* row_of(int bits, const void* matrix, std::int64_t row, std::int64_t columns) {
  return matrix ? static_cast<const char*>(matrix) + row * columns * bits / 8 : nullptr;
}

// Calls f(first, count) on nearly equal runs of [0, count) tokens, so many that pass at a time.
template <class F>
void each_block(std::int64_t count, std::int64_t columns, F f) {
  constexpr std::int64_t room = 2 << 20;  // bytes of x or y
  const std::int64_t most = std::max<std::int64_t>(room / std::max<std::int64_t>(columns * 4, 1), 24);
  const std::int64_t blocks = (count + most - 1) / most;
  for (std::int64_t i = 0; i < blocks; ++i) f(count * i / blocks, count * (i + 1) / blocks - count * i / blocks);
}

}  // namespace moeify
