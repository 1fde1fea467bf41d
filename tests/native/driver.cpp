// Drives the core of the native library without ONNX Runtime, to be compiled with sanitizers: random layers on every
// instruction set, on one thread and on several, against the definition in double.
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <utility>

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

// Values as whole multiples of the 127th part of the largest; NaN all where one is not finite. In floats, as x often lies
// in the middle between two steps.
std::vector<double> rounded(std::vector<double> values) {
  float largest = 0;
  bool finite = true;
  for (const double v : values) {
    finite = finite && std::isfinite(static_cast<float>(v));
    largest = std::fmax(largest, std::fabs(static_cast<float>(v)));
  }
  const float inverse = 127.0f / largest, step = largest / 127.0f;
  for (double& v : values)
    v = !finite ? std::nan("") : largest > 1e-36f ? std::nearbyintf(static_cast<float>(v) * inverse) * step : 0;
  return values;
}

// The definition, in double, with 8 bits that of docs/moe-layer.md for kernels that round x and h; the choice is that of the
// library, which Python judges.
std::vector<double> expected(const Case& c, const Layer& layer) {
  const bool bytes = layer.attributes.bits == 8;
  std::vector<double> y(static_cast<std::size_t>(layer.tokens * layer.output));
  ChoiceScratch scratch;
  Choice choice;
  choose(layer, 0, layer.tokens, scratch, choice);
  const auto add = [&](std::int64_t t, double factor, Input matrix, std::int64_t r) {
    for (std::int64_t o = 0; o < layer.output; ++o)
      y[static_cast<std::size_t>(t * layer.output + o)] += factor * c.at(matrix, r * layer.output + o);
  };
  std::vector<double> x;
  const auto hidden = [&](std::int64_t r, double gate) {
    double u = c.at(kUpBias, r), g = c.at(kGateBias, r);
    for (std::int64_t k = 0; k < layer.hidden; ++k) {
      u += x[static_cast<std::size_t>(k)] * c.at(kUp, r * layer.hidden + k);
      g += x[static_cast<std::size_t>(k)] * c.at(kGate, r * layer.hidden + k);
    }
    const int act = layer.attributes.activation;
    return gate * (layer.gate ? activate(act, g) * u : activate(act, u));
  };
  const auto run = [&](std::int64_t t, std::int64_t from, std::int64_t to, double gate) {
    std::vector<double> h;
    for (std::int64_t r = from; r < to; ++r) h.push_back(hidden(r, gate) * (bytes ? c.at(kDownScale, r) : 1));
    if (bytes) h = rounded(h);
    for (std::int64_t r = from; r < to; ++r) {
      const double value = h[static_cast<std::size_t>(r - from)];
      if (!bytes) add(t, value, kDown, r);
      for (std::int64_t o = 0; bytes && o < layer.output; ++o) {
        const auto at = static_cast<std::size_t>(r * layer.output + o);
        y[static_cast<std::size_t>(t * layer.output + o)] += value * (c.integers[kDown][at] - 128);
      }
    }
  };
  for (std::int64_t t = 0; t < layer.tokens; ++t) {
    add(t, 1, kOutputBias, 0);
    x.clear();
    for (std::int64_t k = 0; k < layer.hidden; ++k) x.push_back(c.at(kX, t * layer.hidden + k));
    const std::vector<double> exact = x;
    if (bytes) x = rounded(x);
    run(t, 0, layer.offsets[0], 1);
    for (std::int64_t e = 0; e < layer.experts; ++e) {
      bool on = false;
      for (std::int64_t i = choice.start[static_cast<std::size_t>(e)]; i < choice.start[static_cast<std::size_t>(e) + 1]; ++i) {
        if (choice.tokens[static_cast<std::size_t>(i)] != t) continue;
        on = true;
        const double gate = choice.gates.empty() ? 1 : choice.gates[static_cast<std::size_t>(i)];
        run(t, layer.offsets[e], layer.offsets[e + 1], gate);
      }
      if (!on) add(t, 1, kIdle, e);
    }
    for (std::int64_t r = 0; r < layer.rank; ++r) {
      double u = 0;
      for (std::int64_t k = 0; k < layer.hidden; ++k)
        u += exact[static_cast<std::size_t>(k)] * c.at(kLowRankIn, r * layer.hidden + k);
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

// One value that falls on the other side of two steps changes y by a step times a weight.
double bound(const Case& c) { return c.attributes.bits == 8 ? 2e-2 : 4e-6; }

bool same(const std::vector<float>& a, const std::vector<float>& b) {
  for (std::size_t i = 0; i < a.size(); ++i)
    if (std::isnan(a[i]) ? !std::isnan(b[i]) : a[i] != b[i]) return false;
  return true;
}

using Sets = std::vector<std::pair<const Kernels*, const Integers*>>;

bool run(int number, const Sets& sets) {
  const Case c = draw();
  Copies copies;
  Layer layer = make_layer(c.inputs, c.attributes, c.stored, copies);
  const std::vector<double> wanted = expected(c, layer);
  std::vector<float> plain;
  for (const auto& [kernels, integers] : sets)
    for (const bool threads : {false, true}) {
      Scratch scratch;
      std::atomic<int> known{threads ? 3 : 1};
      std::vector<float> y(wanted.size());
      layer.y = y.data();
      compute(layer, *kernels, *integers, {nullptr, threads ? threaded : serial}, known, scratch);
      double scale = 1;
      for (const double v : wanted) scale = std::fmax(scale, std::fabs(v));  // NaN is passed over
      for (std::size_t i = 0; i < y.size(); ++i)
        if (std::isnan(wanted[i]) ? !std::isnan(y[i]) : !(std::fabs(y[i] - wanted[i]) <= bound(c) * scale)) {
          std::printf("case %d, %d bits, %s, threads %d: y[%zu] is %g, not %g\n", number, c.attributes.bits, kernels->name, threads, i,
                      static_cast<double>(y[i]), wanted[i]);
          return false;
        }
      // Sums of integers are exact: with an activation that rounds nothing all sets give the same, if nothing is in floats.
      const bool exact = c.attributes.bits == 8 && c.attributes.activation <= 1 && !layer.idle && !layer.rank && !layer.gate;
      if (plain.empty()) plain = y;
      if (exact && !same(plain, y)) {
        std::printf("case %d, %s, threads %d: not what the plain loops give, bit for bit\n", number, integers->name, threads);
        return false;
      }
    }
  return true;
}

}  // namespace

int main(int argc, char** argv) {
  const int cases = argc > 1 ? std::atoi(argv[1]) : 300;
  Sets sets{{&kPlain, &kIntegersPlain}};
#if defined(MOEIFY_X86)
  if (&best_kernels() != &kPlain) sets.push_back({&kAvx2, &kIntegersAvx2});
  if (&best_kernels() == &kAvx512) sets.push_back({&kAvx512, &best_integers()});
#endif
  for (int i = 0; i < cases; ++i)
    if (!run(i, sets)) return 1;
  std::printf("%d cases on %zu instruction sets\n", cases, sets.size());
  return 0;
}
