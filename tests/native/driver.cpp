// Drives the core of the native library without ONNX Runtime, to be compiled with sanitizers: random layers on every
// instruction set, on one thread and on several, against the definition in double.
#include <cstdio>
#include <cstdlib>
#include <thread>

#include "activation_names.h"
#include "compute.h"
#include "random_layer.h"

namespace {

double activate(int name, double x) {
  switch (name) {
    case 0: return x;
    case 1: return std::fmax(x, 0);
    case 7: return 0.5 * x * std::erfc(-x / std::sqrt(2.0));
    default: return x / (1 + std::exp(-x));  // silu
  }
}

// The definition, in double; the choice is that of the library, which Python judges.
std::vector<double> expected(const Case& c, const Layer& layer) {
  std::vector<double> y(static_cast<std::size_t>(layer.tokens * layer.output));
  ChoiceScratch scratch;
  Choice choice;
  choose(layer, 0, layer.tokens, scratch, choice);
  const auto add = [&](std::int64_t t, double factor, Input matrix, std::int64_t r) {
    for (std::int64_t o = 0; o < layer.output; ++o)
      y[static_cast<std::size_t>(t * layer.output + o)] += factor * c.at(matrix, r * layer.output + o);
  };
  const auto row = [&](std::int64_t t, std::int64_t r, double gate) {
    double u = c.at(kUpBias, r), g = c.at(kGateBias, r);
    for (std::int64_t k = 0; k < layer.hidden; ++k) {
      u += static_cast<double>(c.at(kX, t * layer.hidden + k)) * c.at(kUp, r * layer.hidden + k);
      g += static_cast<double>(c.at(kX, t * layer.hidden + k)) * c.at(kGate, r * layer.hidden + k);
    }
    const int act = layer.attributes.activation;
    add(t, gate * (layer.gate ? activate(act, g) * u : activate(act, u)), kDown, r);
  };
  for (std::int64_t t = 0; t < layer.tokens; ++t) {
    add(t, 1, kOutputBias, 0);
    for (std::int64_t r = 0; r < layer.offsets[0]; ++r) row(t, r, 1);
    for (std::int64_t e = 0; e < layer.experts; ++e) {
      bool on = false;
      for (std::int64_t i = choice.start[static_cast<std::size_t>(e)]; i < choice.start[static_cast<std::size_t>(e) + 1]; ++i) {
        if (choice.tokens[static_cast<std::size_t>(i)] != t) continue;
        on = true;
        const double gate = choice.gates.empty() ? 1 : choice.gates[static_cast<std::size_t>(i)];
        for (std::int64_t r = layer.offsets[e]; r < layer.offsets[e + 1]; ++r) row(t, r, gate);
      }
      if (!on) add(t, 1, kIdle, e);
    }
    for (std::int64_t r = 0; r < layer.rank; ++r) {
      double u = 0;
      for (std::int64_t k = 0; k < layer.hidden; ++k)
        u += static_cast<double>(c.at(kX, t * layer.hidden + k)) * c.at(kLowRankIn, r * layer.hidden + k);
      add(t, u, kLowRankOut, r);
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
