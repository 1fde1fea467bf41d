// Drives the core of the native library without ONNX Runtime, to be compiled with sanitizers: random layers of every shape,
// with extreme values and buffers at odd addresses, on every instruction set, against the definition in double.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "activation_names.h"
#include "compute.h"
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

double activate(int name, double x) {
  switch (name) {
    case 0: return x;
    case 1: return std::fmax(x, 0);
    case 7: return 0.5 * x * std::erfc(-x / std::sqrt(2.0));
    default: return x / (1 + std::exp(-x));  // silu
  }
}

struct Case {
  Buffer buffers[kInputs];
  Inputs inputs;
  Attributes attributes;
  Stored stored;

  void add(Input i, std::vector<std::int64_t> shape, bool extreme, float scale = 1, bool broken = false) {
    std::int64_t size = 1;
    for (const std::int64_t dim : shape) size *= dim;
    std::vector<float> values(static_cast<std::size_t>(size));
    for (float& v : values) v = value(extreme) * scale;
    static const float numbers[] = {std::nanf(""), std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity()};
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

  float at(Input i, std::int64_t n) const { return buffers[i].values.empty() ? 0 : buffers[i].values[static_cast<std::size_t>(n)]; }
};

Case draw() {
  Case c;
  static const int names[] = {0, 1, 7, 10};
  c.attributes = {names[rng() % 4], static_cast<GateRule>(rng() % 3), flip()};
  c.stored = static_cast<Stored>(rng() % 3);
  const bool extreme = flip();
  const std::int64_t tokens = pick({0, 1, 2, 4, 5, 6, 7, 13, 40}), hidden = pick({1, 5, 16, 17, 70, 1030}),
                     output = pick({0, 1, 5, 16, 63, 64, 65, 130}), experts = pick({1, 2, 3, 24}), rank = pick({0, 1, 9});
  std::vector<std::int64_t> offsets{flip() ? 0 : pick({1, 8, 70})};
  for (std::int64_t e = 0; e < experts; ++e) offsets.push_back(offsets.back() + pick({0, 1, 8, 16, 67}));
  const std::int64_t rows = offsets.back();
  c.add(kX, {tokens, hidden}, extreme);
  c.add(kScores, {tokens, experts}, false, 3, rng() % 4 == 0);
  c.add(kUp, {rows, hidden}, extreme, 1 / std::sqrt(static_cast<float>(hidden)));
  c.add(kDown, {rows, output}, extreme, 0.3f);
  c.add_integers(kOffsets, {experts + 1}, offsets);
  if (flip()) c.add_integers(kK, {}, {1 + static_cast<std::int64_t>(rng() % static_cast<unsigned>(experts))});
  if (flip()) c.add(kThreshold, {}, false);
  if (flip()) c.add(kGate, {rows, hidden}, extreme, 1 / std::sqrt(static_cast<float>(hidden)));
  if (flip()) c.add(kUpBias, {rows}, extreme);
  if (c.inputs[kGate].given && flip()) c.add(kGateBias, {rows}, extreme);
  if (flip()) c.add(kSelectionBias, {experts}, false);
  if (flip()) c.add(kOutputBias, {output}, extreme);
  if (flip()) c.add(kIdle, {experts, output}, extreme);
  if (flip()) c.add(kLowRankIn, {rank, hidden}, extreme), c.add(kLowRankOut, {rank, output}, extreme);
  return c;
}

// The definition, in double; the choice is that of the library, which Python judges.
std::vector<double> expected(const Case& c, const Layer& layer) {
  std::vector<double> y(static_cast<std::size_t>(layer.tokens * layer.output));
  ChoiceScratch scratch;
  Choice choice;
  choose(layer, 0, layer.tokens, scratch, choice);
  const auto row = [&](std::int64_t t, std::int64_t r, double gate) {
    double u = c.at(kUpBias, r), g = c.at(kGateBias, r);
    for (std::int64_t k = 0; k < layer.hidden; ++k) {
      u += static_cast<double>(c.at(kX, t * layer.hidden + k)) * c.at(kUp, r * layer.hidden + k);
      g += static_cast<double>(c.at(kX, t * layer.hidden + k)) * c.at(kGate, r * layer.hidden + k);
    }
    const double h = gate * (layer.gate ? activate(layer.attributes.activation, g) * u : activate(layer.attributes.activation, u));
    for (std::int64_t o = 0; o < layer.output; ++o) y[static_cast<std::size_t>(t * layer.output + o)] += h * c.at(kDown, r * layer.output + o);
  };
  for (std::int64_t t = 0; t < layer.tokens; ++t) {
    for (std::int64_t o = 0; o < layer.output; ++o) y[static_cast<std::size_t>(t * layer.output + o)] = c.at(kOutputBias, o);
    for (std::int64_t r = 0; r < layer.offsets[0]; ++r) row(t, r, 1);
    for (std::int64_t e = 0; e < layer.experts; ++e) {
      bool on = false;
      for (std::int64_t i = choice.start[static_cast<std::size_t>(e)]; i < choice.start[static_cast<std::size_t>(e) + 1]; ++i) {
        if (choice.tokens[static_cast<std::size_t>(i)] != t) continue;
        on = true;
        const double gate = choice.gates.empty() ? 1 : choice.gates[static_cast<std::size_t>(i)];
        for (std::int64_t r = layer.offsets[e]; r < layer.offsets[e + 1]; ++r) row(t, r, gate);
      }
      for (std::int64_t o = 0; !on && o < layer.output; ++o) y[static_cast<std::size_t>(t * layer.output + o)] += c.at(kIdle, e * layer.output + o);
    }
    for (std::int64_t r = 0; r < layer.rank; ++r) {
      double u = 0;
      for (std::int64_t k = 0; k < layer.hidden; ++k) u += static_cast<double>(c.at(kX, t * layer.hidden + k)) * c.at(kLowRankIn, r * layer.hidden + k);
      for (std::int64_t o = 0; o < layer.output; ++o) y[static_cast<std::size_t>(t * layer.output + o)] += u * c.at(kLowRankOut, r * layer.output + o);
    }
  }
  return y;
}

void threaded(void*, void (*task)(void*, std::size_t), std::size_t count, void* data) {
  std::vector<std::thread> threads;
  for (std::size_t n = 0; n < 3; ++n)
    threads.emplace_back([=] {
      for (std::size_t i = n; i < count; i += 3) task(data, i);
    });
  for (std::thread& thread : threads) thread.join();
}

void serial(void*, void (*task)(void*, std::size_t), std::size_t count, void* data) {
  for (std::size_t i = 0; i < count; ++i) task(data, i);
}

bool run(int number, const std::vector<const Kernels*>& sets) {
  const Case c = draw();
  Copies copies;
  Layer layer = make_layer(c.inputs, c.attributes, c.stored, copies);
  const std::vector<double> wanted = expected(c, layer);
  for (const Kernels* kernels : sets)
    for (const bool threads : {false, true}) {
      Scratch scratch;
      std::atomic<int> known{threads ? 3 : 1};
      std::vector<float> y(wanted.size());
      layer.y = y.data();
      compute(layer, *kernels, {nullptr, threads ? threaded : serial}, known, scratch);
      double scale = 1;
      for (const double v : wanted) scale = std::fmax(scale, std::fabs(v));  // NaN is passed over
      for (std::size_t i = 0; i < y.size(); ++i)
        if (std::isnan(wanted[i]) ? !std::isnan(y[i]) : !(std::fabs(y[i] - wanted[i]) <= 4e-6 * scale)) {
          std::printf("case %d, %s, threads %d: y[%zu] is %g, not %g\n", number, kernels->name, threads, i, y[i], wanted[i]);
          return false;
        }
    }
  return true;
}

}  // namespace

int main(int argc, char** argv) {
  const int cases = argc > 1 ? std::atoi(argv[1]) : 300;
  std::vector<const Kernels*> sets{&kPlain};
#if defined(MOEIFY_X86)
  if (&best_kernels() != &kPlain) sets.push_back(&kAvx2);
  if (&best_kernels() == &kAvx512) sets.push_back(&kAvx512);
#endif
  for (int i = 0; i < cases; ++i)
    if (!run(i, sets)) return 1;
  std::printf("%d cases on %zu instruction sets\n", cases, sets.size());
  return 0;
}
