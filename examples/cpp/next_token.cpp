// Runs a model that moeify exported, with the native kernel of its MoE layers and without Python: what comes after these tokens?
//
//   g++ -std=c++17 -O2 -I native examples/cpp/next_token.cpp -ldl -o next_token
//   ./next_token libonnxruntime.so libmoeify.so model.onnx 504 2786 282
//
// With - in place of libmoeify.so the layers run by the function bodies that the file carries.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <numeric>
#include <string>
#include <vector>

#include "runtime.h"

namespace {

using namespace moeify::ort;

struct Input {
  std::string name;
  ElementType type;
  std::vector<std::int64_t> shape;
  std::vector<std::int64_t> numbers;  // empty for the empty cache
};

std::vector<std::int64_t> shape_of(Table api, const ShapeInfo* info) {
  std::size_t rank = 0;
  check(api, GetDimensionsCount(api, info, &rank));
  std::vector<std::int64_t> shape(rank);
  check(api, GetDimensions(api, info, shape.data(), rank));
  return shape;
}

std::string taken(Table api, Allocator* allocator, char* text) {
  std::string copy = text;
  check(api, AllocatorFree(api, allocator, text));
  return copy;
}

// What the model is given: the tokens [1, n], ones as their mask, their positions, and an empty cache [1, heads, 0, width].
Input input_at(Table api, const Session* session, Allocator* allocator, std::size_t i, const std::vector<std::int64_t>& tokens) {
  Input input{};
  char* name = nullptr;
  check(api, SessionGetInputName(api, session, i, allocator, &name));
  input.name = taken(api, allocator, name);
  const auto type = made<OwnedTypeInfo>(api, SessionGetInputTypeInfo, session, i);
  const ShapeInfo* info = nullptr;
  check(api, CastTypeInfoToTensorInfo(api, type.get(), &info));
  check(api, GetTensorElementType(api, info, &input.type));
  input.shape = shape_of(api, info);
  const bool cache = input.type != kInt64;
  if (cache && input.name.rfind("past_key_values.", 0) != 0) throw std::runtime_error(input.name + ": is no input of token ids");
  for (std::size_t axis = 0; axis < input.shape.size(); axis++)  // free ones are -1
    if (input.shape[axis] < 0) input.shape[axis] = axis == 0 ? 1 : cache ? 0 : std::int64_t(tokens.size());
  if (cache) return input;
  input.numbers.assign(tokens.size(), input.name == "attention_mask");
  if (input.name == "input_ids") input.numbers = tokens;
  if (input.name == "position_ids") std::iota(input.numbers.begin(), input.numbers.end(), 0);
  return input;
}

OwnedValue tensor(Table api, const MemoryInfo* memory, Input& input) {
  static float nothing;
  void* data = input.numbers.empty() ? static_cast<void*>(&nothing) : input.numbers.data();
  const std::size_t bytes = input.numbers.size() * sizeof(std::int64_t);
  return made<OwnedValue>(api, CreateTensorWithDataAsOrtValue, memory, data, bytes, input.shape.data(), input.shape.size(),
                          input.type);
}

// The first output: its shape, and the number that is largest at the last token.
void print(Table api, const std::string& name, Value* value) {
  const auto info = made<OwnedShapeInfo>(api, GetTensorTypeAndShape, static_cast<const Value*>(value));
  const auto shape = shape_of(api, info.get());
  ElementType type = kUndefined;
  check(api, GetTensorElementType(api, info.get(), &type));
  std::printf("%s", name.c_str());
  for (std::int64_t size : shape) std::printf(" %lld", static_cast<long long>(size));
  std::printf("\n");
  if (type != kFloat || shape.empty()) return;
  void* data = nullptr;
  check(api, GetTensorMutableData(api, value, &data));
  const auto count = std::accumulate(shape.begin(), shape.end(), std::int64_t(1), std::multiplies<>());
  const float* last = static_cast<float*>(data) + count - shape.back();
  const float* top = std::max_element(last, last + shape.back());
  std::printf("token %lld, %.6g\n", static_cast<long long>(top - last), double(*top));
}

void run(const char* runtime, const char* library, const char* model, const std::vector<std::int64_t>& tokens) {
  const Table api = open(runtime);
  const auto env = made<OwnedEnv>(api, CreateEnv, kErrors, "next_token");
  const auto options = made<OwnedOptions>(api, CreateSessionOptions);
  void* handle = nullptr;  // stays open as long as the session
  if (std::strcmp(library, "-") != 0) check(api, RegisterCustomOpsLibrary(api, options.get(), library, &handle));
  const auto session = made<OwnedSession>(api, CreateSession, static_cast<const Env*>(env.get()), model,
                                          static_cast<const SessionOptions*>(options.get()));
  const auto memory = made<OwnedMemoryInfo>(api, CreateCpuMemoryInfo, kArenaAllocator, kDefaultMemory);
  Allocator* allocator = nullptr;
  check(api, GetAllocatorWithDefaultOptions(api, &allocator));

  std::size_t count = 0;
  check(api, SessionGetInputCount(api, session.get(), &count));
  std::vector<Input> inputs;
  std::vector<OwnedValue> held;
  for (std::size_t i = 0; i < count; i++) inputs.push_back(input_at(api, session.get(), allocator, i, tokens));
  std::vector<const char*> names;
  std::vector<const Value*> values;
  for (Input& input : inputs) {
    held.push_back(tensor(api, memory.get(), input));
    names.push_back(input.name.c_str());
    values.push_back(held.back().get());
  }
  char* text = nullptr;
  check(api, SessionGetOutputName(api, session.get(), 0, allocator, &text));
  const std::string name = taken(api, allocator, text);
  const char* wanted[] = {name.c_str()};
  Value* found = nullptr;
  check(api, Run(api, session.get(), nullptr, names.data(), values.data(), count, wanted, 1, &found));
  const OwnedValue output(found, {api});
  print(api, name, output.get());
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 5) {
    std::fprintf(stderr, "usage: next_token libonnxruntime.so libmoeify.so|- model.onnx TOKEN...\n");
    return 2;
  }
  std::vector<std::int64_t> tokens;
  for (int i = 4; i < argc; i++) tokens.push_back(std::atoll(argv[i]));
  try {
    run(argv[1], argv[2], argv[3], tokens);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "next_token: %s\n", error.what());
    return 1;
  }
}
