// Inputs that are computed with one by one: used where they lie, or copied as float32.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "inputs.h"
#include "stored.h"

namespace moeify {

inline std::int64_t elements(const std::vector<std::int64_t>& shape) {
  std::int64_t count = 1;
  for (const std::int64_t dim : shape) count *= dim;
  return count;
}

inline constexpr Input kAsFloat[] = {kX, kScores, kUpBias, kGateBias, kOutputBias, kSelectionBias, kUpScale, kGateScale, kDownScale};

// found[i]: the values of input i, in place where they are aligned float32, else in `floats`.
inline void as_floats(const Inputs& inputs, Stored stored, std::vector<float>& floats, const float* (&found)[kInputs]) {
  const auto type = [&](Input i) { return i == kSelectionBias ? Stored::float32 : stored; };
  const auto usable = [&](Input i) {
    return type(i) == Stored::float32 && reinterpret_cast<std::uintptr_t>(inputs[i].data) % alignof(float) == 0;
  };
  std::int64_t size = 0;
  for (const Input i : kAsFloat) size += inputs[i].given && !usable(i) ? elements(inputs[i].shape) : 0;
  floats.resize(std::max(floats.size(), static_cast<std::size_t>(size)));
  float* at = floats.data();
  for (const Input i : kAsFloat) {
    if (!inputs[i].given) continue;
    found[i] = usable(i) ? static_cast<const float*>(inputs[i].data) : at;
    if (usable(i)) continue;
    const std::int64_t count = elements(inputs[i].shape);
    const auto convert = [&](const auto* p) {
      for (std::int64_t n = 0; n < count; ++n) *at++ = read(p + n);
    };
    type(i) == Stored::float32   ? convert(static_cast<const float*>(inputs[i].data))
    : type(i) == Stored::float16 ? convert(static_cast<const Half*>(inputs[i].data))
                                 : convert(static_cast<const BFloat*>(inputs[i].data));
  }
}

}  // namespace moeify
