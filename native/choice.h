// Scores => which experts are on for which token, and their gates (docs/moe-layer.md, "Scores, choice, gates").
#pragma once

#include <cstdint>
#include <vector>

#include "layer.h"

namespace moeify {

// The chosen pairs, sorted by expert and in it by token: those of expert e are [start[e], start[e + 1]).
struct Choice {
  std::vector<std::int64_t> start;   // [experts + 1]
  std::vector<std::int32_t> tokens;  // [pairs], relative to the first token asked for
  std::vector<float> gates;          // [pairs]; empty where every gate is 1
  std::vector<float> idle;           // [tokens, experts], 1 for experts that are off; empty without idle vectors
};

// Storage that is kept from call to call.
struct ChoiceScratch {
  std::vector<double> values;
  std::vector<double> order;
  std::vector<unsigned char> on;  // [tokens, experts]
  std::vector<float> gate;        // [tokens, experts]
  std::vector<std::int64_t> next;  // [experts]
};

// For tokens [first, first + count) of the layer.
void choose(const Layer& layer, std::int64_t first, std::int64_t count, ChoiceScratch& scratch, Choice& choice);

}  // namespace moeify
