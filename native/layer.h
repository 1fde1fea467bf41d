// One call of moeify::MoE as plain pointers and sizes (docs/moe-layer.md); nothing here knows ONNX Runtime.
#pragma once

#include <cstddef>
#include <cstdint>

namespace moeify {

// How the weights of a layer are stored. Everything is computed in float32.
enum class Stored { float32, float16, bfloat16 };

// Bytes of one weight.
inline std::size_t width_of(Stored stored) { return stored == Stored::float32 ? 4 : 2; }

enum class GateRule { one, softmax, sigmoid };

// In the order of kActivations (activation_names.h).
using Activation = int;

struct Attributes {
  Activation activation;
  GateRule gate_rule;
  bool normalize;
};

// Matrices are row-major and tight; `stored` weights are void* at any address. Absent inputs are null. Nothing is owned.
struct Layer {
  Attributes attributes;
  Stored stored;
  std::int64_t tokens, hidden, output, experts, rank;
  const float* x;       // [tokens, hidden]
  const float* scores;  // [tokens, experts]
  const void* up;       // [rows, hidden]
  const void* gate;     // [rows, hidden]
  const void* down;     // [rows, output]
  const void* idle;     // [experts, output]
  const void* low_rank_in;   // [rank, hidden]
  const void* low_rank_out;  // [rank, output]
  const float* up_bias;         // [rows]
  const float* gate_bias;       // [rows]
  const float* selection_bias;  // [experts]
  const float* output_bias;     // [output]
  const std::int64_t* offsets;  // [experts + 1]
  std::int64_t k;               // `experts` where there is no top-k
  bool has_threshold;
  float threshold;
  float* y;                     // [tokens, output]
};

// Runs task(data, i) for i in [0, count), perhaps on several threads at once; returns when all are done.
struct Pool {
  void* context;
  void (*run)(void* context, void (*task)(void*, std::size_t), std::size_t count, void* data);
};

}  // namespace moeify
