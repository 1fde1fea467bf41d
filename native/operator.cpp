#include "operator.h"

#include <algorithm>
#include <string>

#include "activation_names.h"
#include "stored.h"

namespace moeify {
namespace {

void check(ort::Status* status) {
  if (status) throw StatusError{status};
}

// Absent attributes give nothing.
bool attribute(ort::Table api, const ort::KernelInfo* info, const char* name, std::string& value) {
  std::size_t size = 0;
  if (ort::Status* absent = ort::KernelInfoGetAttribute_string(api, info, name, nullptr, &size)) {
    ort::ReleaseStatus(api, absent);
    return false;
  }
  value.resize(size);
  check(ort::KernelInfoGetAttribute_string(api, info, name, value.data(), &size));
  value.resize(size ? size - 1 : 0);  // without the final zero
  return true;
}

Activation activation_of(ort::Table api, const ort::KernelInfo* info) {
  std::string name;
  if (!attribute(api, info, "activation", name)) throw InputError("the attribute activation is missing");
  for (int i = 0; i < kActivationCount; ++i)
    if (name == kActivations[i]) return i;
  throw InputError("activation is '" + name + "', which this library does not know");
}

GateRule gate_rule_of(ort::Table api, const ort::KernelInfo* info) {
  std::string name = "one";
  attribute(api, info, "gate_rule", name);
  if (name == "one") return GateRule::one;
  if (name == "softmax") return GateRule::softmax;
  if (name == "sigmoid") return GateRule::sigmoid;
  throw InputError("gate_rule is '" + name + "': it is one, softmax or sigmoid");
}

bool normalize_of(ort::Table api, const ort::KernelInfo* info) {
  std::int64_t value = 0;
  if (ort::Status* absent = ort::KernelInfoGetAttribute_int64(api, info, "normalize", &value)) {
    ort::ReleaseStatus(api, absent);
    return false;
  }
  if (value != 0 && value != 1) throw InputError("normalize is " + std::to_string(value) + ": it is 0 or 1");
  return value == 1;
}

int bits_of(ort::Table api, const ort::KernelInfo* info) {
  std::int64_t value = 0;
  if (ort::Status* absent = ort::KernelInfoGetAttribute_int64(api, info, "bits", &value)) ort::ReleaseStatus(api, absent);
  if (value != 8 && value != 4) throw InputError("bits is " + std::to_string(value) + ": it is 8 or 4");
  return static_cast<int>(value);
}

Tensor tensor_of(ort::Table api, const ort::Value* value) {
  Tensor tensor;
  if (!value) return tensor;
  ort::ShapeInfo* info = nullptr;
  check(ort::GetTensorTypeAndShape(api, value, &info));
  std::size_t rank = 0;
  ort::Status* status = ort::GetDimensionsCount(api, info, &rank);
  if (!status) {
    tensor.shape.resize(rank);
    status = ort::GetDimensions(api, info, tensor.shape.data(), rank);
  }
  ort::ReleaseTensorTypeAndShapeInfo(api, info);
  check(status);
  void* data = nullptr;
  check(ort::GetTensorMutableData(api, const_cast<ort::Value*>(value), &data));
  tensor.data = data;
  tensor.given = true;
  return tensor;
}

void narrow_all(const float* from, std::int64_t count, Stored stored, void* to) {
  const auto convert = [&](auto* out) {
    for (std::int64_t i = 0; i < count; ++i) narrow(from[i], out[i]);
  };
  stored == Stored::float16 ? convert(static_cast<Half*>(to)) : convert(static_cast<BFloat*>(to));
}

}  // namespace

Operator::Operator(ort::Table api, const ort::KernelInfo* info, const Signature& signature, Stored stored)
    : api_(api),
      signature_(signature),
      stored_(stored),
      attributes_{activation_of(api, info), gate_rule_of(api, info), normalize_of(api, info),
                  &signature == &kQMoE ? bits_of(api, info) : 0} {}

Inputs Operator::read(const ort::KernelContext* context) const {
  Inputs inputs;
  std::size_t count = 0;
  check(ort::KernelContext_GetInputCount(api_, context, &count));
  for (std::size_t i = 0; i < std::min(count, static_cast<std::size_t>(signature_.count)); ++i) {
    const ort::Value* value = nullptr;
    check(ort::KernelContext_GetInput(api_, context, i, &value));
    inputs.tensors[signature_.order[i]] = tensor_of(api_, value);
  }
  return inputs;
}

std::unique_ptr<Storage> Operator::take() {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (free_.empty()) return std::make_unique<Storage>();
  std::unique_ptr<Storage> storage = std::move(free_.back());
  free_.pop_back();
  return storage;
}

void Operator::give_back(std::unique_ptr<Storage> storage) {
  const std::lock_guard<std::mutex> lock(mutex_);
  free_.push_back(std::move(storage));
}

void Operator::run(ort::KernelContext* context) {
  const Inputs inputs = read(context);
  std::unique_ptr<Storage> storage = take();
  Layer layer = make_layer(inputs, attributes_, stored_, storage->copies);
  std::vector<std::int64_t> shape = inputs[kX].shape;
  shape.back() = layer.output;
  ort::Value* y = nullptr;
  check(ort::KernelContext_GetOutput(api_, context, 0, shape.data(), shape.size(), &y));
  void* data = nullptr;
  check(ort::GetTensorMutableData(api_, y, &data));
  const std::int64_t values = layer.tokens * layer.output;
  if (stored_ != Stored::float32) storage->y.resize(std::max(storage->y.size(), static_cast<std::size_t>(values)));
  layer.y = stored_ == Stored::float32 ? static_cast<float*>(data) : storage->y.data();
  struct Context {
    ort::Table api;
    const ort::KernelContext* kernel;
  } pool{api_, context};
  compute(layer, best_kernels(), best_integers(),
          {&pool,
           [](void* self, void (*task)(void*, std::size_t), std::size_t count, void* task_data) {
             const auto& c = *static_cast<Context*>(self);
             check(ort::KernelContext_ParallelFor(c.api, c.kernel, task, count, 0, task_data));
           }},
          threads_, storage->scratch);
  if (stored_ != Stored::float32) narrow_all(layer.y, values, stored_, data);
  give_back(std::move(storage));
}

}  // namespace moeify
