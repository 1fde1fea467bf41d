// Random layers of every shape for driver.cpp, with extreme values and buffers at odd addresses.
#pragma once

#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <vector>

#include "inputs.h"
#include "stored.h"

using namespace moeify;

namespace {

std::mt19937 rng(7);

std::int64_t pick(std::initializer_list<std::int64_t> from) { return from.begin()[rng() % from.size()]; }
bool flip() { return rng() % 2; }

// Exactly as many bytes as the tensor has, `shift` behind an aligned address: a byte too far is seen.
struct Buffer {
  std::unique_ptr<char[]> bytes;
  std::vector<float> values;  // as they are stored
};

template <class W>
void put(Buffer& buffer, const std::vector<float>& values, std::size_t shift) {
  buffer.bytes.reset(new char[values.size() * sizeof(W) + shift]);
  for (std::size_t i = 0; i < values.size(); ++i) {
    W stored;
    narrow(values[i], stored);
    std::memcpy(buffer.bytes.get() + shift + i * sizeof(W), &stored, sizeof(W));
    buffer.values.push_back(widen(stored));
  }
}

float value(bool extreme) {
  static const float strange[] = {1e-40f, -1e-42f, 0.0f, -0.0f, 1e-30f, 60.0f, -60.0f};
  return extreme && rng() % 8 == 0 ? strange[rng() % 7] : static_cast<float>(static_cast<int>(rng() % 2001) - 1000) * 1e-3f;
}

struct Case {
  Buffer buffers[kInputs];
  Inputs inputs;
  std::vector<std::uint8_t> integers[kInputs];  // of up, gate and down with `bits`
  Attributes attributes;
  Stored stored;

  void add(Input i, std::vector<std::int64_t> shape, bool extreme, float scale = 1, bool broken = false) {
    std::int64_t size = 1;
    for (const std::int64_t dim : shape) size *= dim;
    std::vector<float> values(static_cast<std::size_t>(size));
    for (float& v : values) v = value(extreme) * scale;
    const float infinity = std::numeric_limits<float>::infinity(), numbers[] = {std::nanf(""), infinity, -infinity};
    if (broken && size) values[rng() % values.size()] = numbers[rng() % 3];
    const std::size_t shift = rng() % 4;
    if (i == kSelectionBias || i == kThreshold || stored == Stored::float32) put<float>(buffers[i], values, shift);
    else if (stored == Stored::float16) put<Half>(buffers[i], values, shift);
    else put<BFloat>(buffers[i], values, shift);
    inputs.tensors[i] = {buffers[i].bytes.get() + shift, std::move(shape), true};
  }

  void add_integers(Input i, std::vector<std::int64_t> shape, const std::vector<std::int64_t>& values) {
    const std::size_t shift = rng() % 8;
    buffers[i].bytes.reset(new char[values.size() * 8 + shift]);
    std::memcpy(buffers[i].bytes.get() + shift, values.data(), values.size() * 8);
    inputs.tensors[i] = {buffers[i].bytes.get() + shift, std::move(shape), true};
  }

  // Integers of any value [rows, width] with their scales.
  void add_weights(Input i, Input scale, std::int64_t rows, std::int64_t width, bool extreme, float size) {
    const int bits = attributes.bits;
    integers[i].resize(static_cast<std::size_t>(rows * width * bits / 8));
    for (std::uint8_t& v : integers[i]) v = static_cast<std::uint8_t>(extreme && rng() % 4 == 0 ? (rng() % 2 ? 0 : 255) : rng());
    const std::size_t shift = rng() % 4;
    buffers[i].bytes.reset(new char[integers[i].size() + shift]);
    if (!integers[i].empty()) std::memcpy(buffers[i].bytes.get() + shift, integers[i].data(), integers[i].size());
    inputs.tensors[i] = {buffers[i].bytes.get() + shift, {rows, width * bits / 8}, true};
    add(scale, {rows, bits == 8 ? 1 : width / kBlock}, extreme, size / (bits == 8 ? 127.0f : 7.0f));
    const std::int64_t block = bits == 8 ? width : kBlock;
    for (std::int64_t n = 0; n < rows * width; ++n) {
      const auto byte = integers[i][static_cast<std::size_t>(bits == 8 ? n : n / 2)];
      const int whole = bits == 8 ? byte - 128 : (n % 2 ? byte >> 4 : byte & 15) - 8;
      buffers[i].values.push_back(static_cast<float>(whole) * at(scale, n / block));
    }
  }

  // 0 for inputs that are absent.
  float at(Input i, std::int64_t n) const {
    return buffers[i].values.empty() ? 0 : buffers[i].values[static_cast<std::size_t>(n)];
  }
};

Case draw() {
  Case c;
  static const int names[] = {0, 1, 7, 10};
  c.attributes = {names[rng() % 4], static_cast<GateRule>(rng() % 3), flip(), static_cast<int>(pick({0, 0, 8, 8, 4}))};
  const int bits = c.attributes.bits;
  c.stored = bits ? Stored::float32 : static_cast<Stored>(rng() % 3);
  const bool extreme = flip();
  const std::int64_t tokens = pick({0, 1, 2, 4, 5, 6, 7, 13, 40}),
                     hidden = bits == 4 ? pick({32, 96, 1024}) : pick({1, 5, 16, 17, 70, 1030}),
                     output = bits == 4 ? pick({0, 32, 64, 160}) : pick({0, 1, 5, 16, 63, 64, 65, 130}), experts = pick({1, 2, 3, 24}), rank = pick({0, 1, 9});
  std::vector<std::int64_t> offsets{flip() ? 0 : pick({1, 8, 70})};
  for (std::int64_t e = 0; e < experts; ++e) offsets.push_back(offsets.back() + pick({0, 1, 8, 16, 67}));
  const std::int64_t rows = offsets.back();
  c.add(kX, {tokens, hidden}, extreme);
  c.add(kScores, {tokens, experts}, false, 3, rng() % 4 == 0);
  const auto matrix = [&](Input i, Input scale, std::int64_t width, float size) {
    bits ? c.add_weights(i, scale, rows, width, extreme, size) : c.add(i, {rows, width}, extreme, size);
  };
  const float size = 1 / std::sqrt(static_cast<float>(hidden));
  matrix(kUp, kUpScale, hidden, size);
  matrix(kDown, kDownScale, output, 0.3f);
  c.add_integers(kOffsets, {experts + 1}, offsets);
  if (flip()) c.add_integers(kK, {}, {1 + static_cast<std::int64_t>(rng() % static_cast<unsigned>(experts))});
  if (flip()) c.add(kThreshold, {}, false);
  if (flip()) matrix(kGate, kGateScale, hidden, size);
  if (flip()) c.add(kUpBias, {rows}, extreme);
  if (c.inputs[kGate].given && flip()) c.add(kGateBias, {rows}, extreme);
  if (flip()) c.add(kSelectionBias, {experts}, false);
  if (flip()) c.add(kOutputBias, {output}, extreme);
  if (flip()) c.add(kIdle, {experts, output}, extreme);
  if (flip()) c.add(kLowRankIn, {rank, hidden}, extreme), c.add(kLowRankOut, {rank, output}, extreme);
  return c;
}

}  // namespace
