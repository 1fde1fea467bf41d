#include "inputs.h"

#include <algorithm>
#include <cstring>

#include "as_floats.h"

namespace moeify {

const char* const kInputNames[kInputs] = {"x",         "scores",    "up",             "down",        "offsets",
                                          "k",         "threshold", "gate",           "up_bias",     "gate_bias",
                                          "selection_bias", "output_bias", "idle",    "low_rank_in", "low_rank_out",
                                          "up_scale",  "gate_scale", "down_scale"};

namespace {

constexpr Input kMoEOrder[] = {kX,    kScores, kUp,        kDown,          kOffsets,    kK,    kThreshold, kGate,
                               kUpBias, kGateBias, kSelectionBias, kOutputBias, kIdle, kLowRankIn, kLowRankOut};
constexpr Input kQMoEOrder[] = {kX,    kScores,    kUp,     kUpScale,  kDown,          kDownScale,  kOffsets, kK,        kThreshold,
                                kGate, kGateScale, kUpBias, kGateBias, kSelectionBias, kOutputBias, kIdle,    kLowRankIn, kLowRankOut};

std::string text(const std::vector<std::int64_t>& shape) {
  std::string out = "[";
  for (std::size_t i = 0; i < shape.size(); ++i) out += (i ? ", " : "") + std::to_string(shape[i]);
  return out + "]";
}

[[noreturn]] void refuse(const std::string& message) { throw InputError(message); }

void expect_shape(const Inputs& inputs, Input which, const std::vector<std::int64_t>& wanted, const char* names) {
  const Tensor& tensor = inputs[which];
  if (tensor.given && tensor.shape != wanted)
    refuse(std::string(kInputNames[which]) + " has the shape " + text(tensor.shape) + ": " + names + " is " + text(wanted));
}

// A scalar may be written as one value in one dimension.
void expect_scalar(const Inputs& inputs, Input which) {
  const Tensor& tensor = inputs[which];
  if (!tensor.given) return;
  for (const std::int64_t dim : tensor.shape)
    if (dim != 1) refuse(std::string(kInputNames[which]) + " has the shape " + text(tensor.shape) + ": it is a single value");
}

void expect_rank(const Inputs& inputs, Input which, std::size_t rank, const char* names) {
  const Tensor& tensor = inputs[which];
  if (tensor.shape.size() != rank)
    refuse(std::string(kInputNames[which]) + " has the shape " + text(tensor.shape) + ": it is " + names);
}

void check_pairs(const Inputs& inputs) {
  if (inputs[kGateBias].given && !inputs[kGate].given) refuse("gate_bias is given without gate");
  if (inputs[kLowRankIn].given != inputs[kLowRankOut].given) refuse("low_rank_in and low_rank_out go together");
  if (inputs[kUpScale].given && inputs[kGate].given != inputs[kGateScale].given) refuse("gate and gate_scale go together");
}

void check_offsets(const Layer& layer, std::int64_t rows) {
  std::int64_t before = 0;
  for (std::int64_t e = 0; e <= layer.experts; before = layer.offsets[e++])
    if (layer.offsets[e] < before || layer.offsets[e] > rows)
      refuse("offsets[" + std::to_string(e) + "] is " + std::to_string(layer.offsets[e]) + ": offsets rise from 0 to the " +
             std::to_string(rows) + " rows of up");
  if (before != rows)
    refuse("offsets ends with " + std::to_string(before) + ": up has " + std::to_string(rows) + " rows");
}

void check_shapes(const Inputs& inputs, const Layer& layer, std::int64_t rows) {
  std::vector<std::int64_t> scores = inputs[kX].shape;
  scores.back() = layer.experts;
  expect_shape(inputs, kScores, scores, "[.., experts]");
  if (layer.attributes.bits == 4) {
    expect_shape(inputs, kUp, {rows, layer.hidden / 2}, "[rows, hidden / 2]");
    expect_shape(inputs, kGate, {rows, layer.hidden / 2}, "[rows, hidden / 2]");
    expect_shape(inputs, kDown, {rows, layer.output / 2}, "[rows, output / 2]");
  } else {
    expect_shape(inputs, kUp, {rows, layer.hidden}, "[rows, hidden]");
    expect_shape(inputs, kGate, {rows, layer.hidden}, "[rows, hidden]");
    expect_shape(inputs, kDown, {rows, layer.output}, "[rows, output]");
  }
  expect_shape(inputs, kUpBias, {rows}, "[rows]");
  expect_shape(inputs, kGateBias, {rows}, "[rows]");
  expect_shape(inputs, kSelectionBias, {layer.experts}, "[experts]");
  expect_shape(inputs, kOutputBias, {layer.output}, "[output]");
  expect_shape(inputs, kIdle, {layer.experts, layer.output}, "[experts, output]");
  expect_shape(inputs, kLowRankIn, {layer.rank, layer.hidden}, "[rank, hidden]");
  expect_shape(inputs, kLowRankOut, {layer.rank, layer.output}, "[rank, output]");
  expect_scalar(inputs, kK);
  expect_scalar(inputs, kThreshold);
}

// The scales of integers, and sizes that their sums allow.
void check_integers(const Inputs& inputs, const Layer& layer, std::int64_t rows) {
  if (layer.attributes.bits == 4) {
    for (const std::int64_t width : {layer.hidden, layer.output})
      if (width % kBlock) refuse("4 bits take hidden and output in blocks of 32: " + std::to_string(width) + " is no multiple");
    expect_shape(inputs, kUpScale, {rows, layer.hidden / kBlock}, "[rows, hidden / 32]");
    expect_shape(inputs, kGateScale, {rows, layer.hidden / kBlock}, "[rows, hidden / 32]");
    expect_shape(inputs, kDownScale, {rows, layer.output / kBlock}, "[rows, output / 32]");
  } else if (layer.attributes.bits == 8) {
    for (const Input i : {kUpScale, kGateScale, kDownScale}) expect_shape(inputs, i, {rows, 1}, "[rows, 1]");
    std::int64_t widest = std::max(layer.hidden, layer.offsets[0]);
    for (std::int64_t e = 0; e < layer.experts; ++e) widest = std::max(widest, layer.offsets[e + 1] - layer.offsets[e]);
    if (widest > kLongestSum)
      refuse("sums of " + std::to_string(widest) + " products: hidden and the rows of an expert are at most " +
             std::to_string(kLongestSum));
  }
}

template <class T>
T value_of(const Tensor& tensor) {
  T value;
  std::memcpy(&value, tensor.data, sizeof value);
  return value;
}

}  // namespace

const Signature kMoE{"MoE", kMoEOrder, sizeof(kMoEOrder) / sizeof(Input), 5};
const Signature kQMoE{"QMoE", kQMoEOrder, sizeof(kQMoEOrder) / sizeof(Input), 7};

Layer make_layer(const Inputs& inputs, const Attributes& attributes, Stored stored, Copies& copies) {
  const Signature& signature = attributes.bits ? kQMoE : kMoE;
  for (int i = 0; i < signature.required; ++i)
    if (!inputs[signature.order[i]].given) refuse(std::string(kInputNames[signature.order[i]]) + " is missing");
  check_pairs(inputs);
  if (inputs[kX].shape.empty() || inputs[kX].shape.back() < 1)
    refuse("x has the shape " + text(inputs[kX].shape) + ": it is [.., hidden] with at least one value");
  expect_rank(inputs, kUp, 2, "[rows, hidden]");
  expect_rank(inputs, kDown, 2, "[rows, output]");
  expect_rank(inputs, kOffsets, 1, "[experts + 1]");
  Layer layer{};
  layer.attributes = attributes;
  layer.stored = stored;
  layer.hidden = inputs[kX].shape.back();
  layer.output = inputs[kDown].shape[1] * (attributes.bits == 4 ? 2 : 1);
  layer.experts = inputs[kOffsets].shape[0] - 1;
  if (layer.experts < 1) refuse("offsets has the shape " + text(inputs[kOffsets].shape) + ": there is no expert");
  if (inputs[kLowRankIn].given) {
    expect_rank(inputs, kLowRankIn, 2, "[rank, hidden]");
    layer.rank = inputs[kLowRankIn].shape[0];
  }
  const std::int64_t rows = inputs[kUp].shape[0];
  check_shapes(inputs, layer, rows);
  copies.offsets.resize(static_cast<std::size_t>(layer.experts) + 1);
  std::memcpy(copies.offsets.data(), inputs[kOffsets].data, copies.offsets.size() * sizeof(std::int64_t));
  layer.offsets = copies.offsets.data();
  check_offsets(layer, rows);
  check_integers(inputs, layer, rows);
  layer.k = inputs[kK].given ? value_of<std::int64_t>(inputs[kK]) : layer.experts;
  if (layer.k < 1 || layer.k > layer.experts)
    refuse("k is " + std::to_string(layer.k) + ": it goes from 1 to the " + std::to_string(layer.experts) + " experts");
  std::vector<std::int64_t> lead(inputs[kX].shape.begin(), inputs[kX].shape.end() - 1);
  layer.tokens = elements(lead);
  const float* found[kInputs] = {};
  as_floats(inputs, stored, copies.floats, found);
  layer.x = found[kX];
  layer.scores = found[kScores];
  layer.up_bias = found[kUpBias];
  layer.gate_bias = found[kGateBias];
  layer.output_bias = found[kOutputBias];
  layer.up_scale = found[kUpScale];
  layer.gate_scale = found[kGateScale];
  layer.down_scale = found[kDownScale];
  layer.up = inputs[kUp].data;
  layer.gate = inputs[kGate].data;
  layer.down = inputs[kDown].data;
  layer.idle = inputs[kIdle].data;
  layer.low_rank_in = inputs[kLowRankIn].data;
  layer.low_rank_out = inputs[kLowRankOut].data;
  layer.selection_bias = found[kSelectionBias];
  layer.has_threshold = inputs[kThreshold].given;
  if (layer.has_threshold) layer.threshold = value_of<float>(inputs[kThreshold]);
  return layer;
}

}  // namespace moeify
