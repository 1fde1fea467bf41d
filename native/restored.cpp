#include "restored.h"

#include <algorithm>

namespace moeify {
namespace {

constexpr std::int64_t kFloats = 32 << 10;  // that stay in the second cache

std::int64_t rows_at_once(std::int64_t columns) {
  return std::max<std::int64_t>(4, std::min<std::int64_t>(64, kFloats / std::max<std::int64_t>(columns, 1))) / 4 * 4;
}

float* room(std::int64_t values) {
  static thread_local std::vector<float> kept;
  kept.resize(std::max(kept.size(), static_cast<std::size_t>(values)));
  return kept.data();
}

}  // namespace

void project_restored(const Kernels& kernels, const Integers& integers, const Projection& whole, const float* scale) {
  const std::int64_t step = rows_at_once(whole.hidden);
  float* floats = room(step * whole.hidden);
  for (std::int64_t row = 0; row < whole.rows; row += step) {
    Projection p = whole;
    p.rows = std::min(step, whole.rows - row);
    const std::int64_t first = row * whole.hidden;
    integers.restore(static_cast<const std::uint8_t*>(whole.weights) + first / 2, scale + first / kBlock, p.rows * whole.hidden,
                     floats);
    p.weights = floats;
    p.bias = whole.bias ? whole.bias + row : nullptr;
    p.h = whole.h + row;
    p.ahead = {whole.ahead.at, whole.ahead.at};
    kernels.project[0](p);
  }
}

void accumulate_restored(const Kernels& kernels, const Integers& integers, const Accumulation& whole, const float* scale) {
  const std::int64_t step = rows_at_once(whole.output);
  float* floats = room(step * whole.output);
  for (std::int64_t row = 0; row < whole.rows; row += step) {
    Accumulation a = whole;
    a.rows = std::min(step, whole.rows - row);
    for (std::int64_t r = 0; r < a.rows; ++r) {
      const std::int64_t first = (row + r) * whole.output;
      integers.restore(static_cast<const std::uint8_t*>(whole.weights) + first / 2, scale + first / kBlock, whole.columns,
                       floats + r * whole.output);
    }
    a.h = whole.h + row;
    a.weights = floats;
    a.ahead = {whole.ahead.at, whole.ahead.at};
    kernels.accumulate[0](a);
  }
}

}  // namespace moeify
