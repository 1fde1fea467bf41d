// One call of moeify::MoE as plain pointers and sizes (docs/moe-layer.md); nothing here knows ONNX Runtime.
#pragma once

#include <cstddef>
#include <cstdint>

namespace moeify {

// How the weights of a layer are stored. Everything is computed in float32.
enum class Stored { float32, float16, bfloat16 };

// Bits of one weight.
inline int bits_of(Stored stored) { return stored == Stored::float32 ? 32 : 16; }

// Weights that share a scale where they have 4 bits; where they have 8 it is a row.
constexpr std::int64_t kBlock = 32;

enum class GateRule { one, softmax, sigmoid };

// In the order of kActivations (activation_names.h).
using Activation = int;

struct Attributes {
  Activation activation;
  GateRule gate_rule;
  bool normalize;
  int bits;  // of the weights of QMoE: 8 or 4; 0 for MoE
};

// The longest sum of products of two bytes that an int32 holds.
constexpr std::int64_t kLongestSum = 131072;

// Matrices are row-major and tight; `stored` weights are void* at any address. Absent inputs are null. Nothing is owned.
// With `bits`, up, gate and down are integers, the others float32.
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
  const float* up_scale;        // [rows, blocks], with `bits`; a block is the row (8 bits) or kBlock columns (4 bits)
  const float* gate_scale;
  const float* down_scale;
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
