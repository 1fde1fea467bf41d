// The inputs of a node, checked: what ONNX Runtime hands over => a Layer.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "layer.h"
#include "ort_api.h"

namespace moeify {

// The inputs of moeify::MoE in their order (docs/moe-layer.md), then those that moeify::QMoE has beside them.
enum Input {
  kX, kScores, kUp, kDown, kOffsets, kK, kThreshold, kGate, kUpBias, kGateBias, kSelectionBias, kOutputBias, kIdle,
  kLowRankIn, kLowRankOut, kUpScale, kGateScale, kDownScale, kInputs
};
extern const char* const kInputNames[kInputs];

// What a node of an operator has at which place; the first `required` ones are.
struct Signature {
  const char* name;
  const Input* order;
  int count, required;
};
extern const Signature kMoE, kQMoE;

// One line that says which input is wrong, and how; the name of the operator goes before it.
struct InputError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Tensor {
  const void* data = nullptr;
  std::vector<std::int64_t> shape;
  bool given = false;
};

struct Inputs {
  Tensor tensors[kInputs];
  const Tensor& operator[](Input i) const { return tensors[i]; }
};

// What of the inputs is not used where it lies; kept from call to call.
struct Copies {
  std::vector<float> floats;
  std::vector<std::int64_t> offsets;
};

// A layer of these inputs without y. Inputs that are computed with one by one are copied where they are not aligned float32.
// Raises InputError where shapes do not fit together, offsets do not divide the rows, or k is out of range.
Layer make_layer(const Inputs& inputs, const Attributes& attributes, Stored stored, Copies& copies);

}  // namespace moeify
