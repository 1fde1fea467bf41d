#include "choice.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

#include "stored.h"

namespace moeify {
namespace {

// v of one token, in double as tests/moe_reference.py computes it: no choice hangs on the rounding of an exponential.
void values_of(const float* scores, std::int64_t experts, GateRule rule, double* v) {
  if (rule == GateRule::one) {
    std::copy(scores, scores + experts, v);
  } else if (rule == GateRule::sigmoid) {
    std::transform(scores, scores + experts, v, [](double s) {
      const double t = std::exp(-std::fabs(s));
      return s < 0 ? t / (1 + t) : 1 / (1 + t);
    });
  } else {
    const double top = *std::max_element(scores, scores + experts);
    double sum = 0;
    for (std::int64_t e = 0; e < experts; ++e) sum += v[e] = std::exp(scores[e] - top);
    for (std::int64_t e = 0; e < experts; ++e) v[e] /= sum;
  }
}

// A value that exactly k of c reach, by halving the range that it lies in, without a branch that depends on c. False where that
// takes long: among equal values, or infinite ones.
bool reached_by(std::int64_t k, const double* c, std::int64_t experts, double& value) {
  const auto range = std::minmax_element(c, c + experts);
  double low = *range.first, high = *range.second;
  for (int step = 0; step < 32; ++step) {
    value = low + (high - low) / 2;
    std::int64_t count = 0;
    for (std::int64_t e = 0; e < experts; ++e) count += c[e] >= value ? 1 : 0;
    if (count == k) return true;
    (count > k ? low : high) = value;
  }
  return false;
}

// Marks the k largest c; among equal ones the lower index comes first.
void keep_largest(const double* c, std::int64_t experts, std::int64_t k, std::vector<double>& order, unsigned char* on) {
  double last;
  if (reached_by(k, c, experts, last)) {
    for (std::int64_t e = 0; e < experts; ++e) on[e] = c[e] >= last;
    return;
  }
  order.assign(c, c + experts);
  std::nth_element(order.begin(), order.begin() + (k - 1), order.end(), std::greater<double>());
  last = order[static_cast<std::size_t>(k - 1)];
  for (std::int64_t e = 0; e < experts; ++e) k -= on[e] = c[e] > last ? 1 : 0;
  for (std::int64_t e = 0; k > 0; ++e)
    if (c[e] == last) on[e] = 1, --k;
}

void choose_for_token(const Layer& layer, const float* scores, ChoiceScratch& scratch, unsigned char* on, float* gate) {
  const std::int64_t experts = layer.experts;
  double *v = scratch.values.data(), *c = v + experts;
  const GateRule rule = layer.attributes.gate_rule;
  values_of(scores, experts, rule, v);
  for (std::int64_t e = 0; e < experts; ++e) {
    const double steered = layer.selection_bias ? v[e] + layer.selection_bias[e] : v[e];
    c[e] = std::isnan(steered) ? std::numeric_limits<double>::infinity() : steered;  // broken input shows in the output
  }
  if (layer.k < experts) {
    keep_largest(c, experts, layer.k, scratch.order, on);
  } else {
    std::fill(on, on + experts, static_cast<unsigned char>(1));
  }
  if (layer.has_threshold)
    for (std::int64_t e = 0; e < experts; ++e) on[e] = on[e] && c[e] >= layer.threshold;
  if (!gate) return;
  double total = 0;
  for (std::int64_t e = 0; e < experts; ++e) total += on[e] ? (rule == GateRule::one ? 1.0 : v[e]) : 0.0;
  const double scale = layer.attributes.normalize && total != 0 ? total : 1.0;
  for (std::int64_t e = 0; e < experts; ++e) gate[e] = static_cast<float>((rule == GateRule::one ? 1.0 : v[e]) / scale);
}

// Counting sort of the pairs by expert.
void gather_pairs(std::int64_t count, std::int64_t experts, ChoiceScratch& scratch, bool gates, Choice& choice) {
  choice.start.assign(static_cast<std::size_t>(experts) + 1, 0);
  const unsigned char* on = scratch.on.data();
  for (std::int64_t t = 0; t < count; ++t, on += experts)
    for (std::int64_t e = 0; e < experts; ++e) choice.start[static_cast<std::size_t>(e) + 1] += on[e];
  for (std::size_t e = 0; e < static_cast<std::size_t>(experts); ++e) choice.start[e + 1] += choice.start[e];
  const auto pairs = static_cast<std::size_t>(choice.start.back());
  choice.tokens.resize(pairs);
  choice.gates.resize(gates ? pairs : 0);
  std::vector<std::int64_t>& next = scratch.next;
  next.assign(choice.start.begin(), choice.start.end() - 1);
  on = scratch.on.data();
  for (std::int64_t t = 0; t < count; ++t, on += experts)
    for (std::int64_t e = 0; e < experts; ++e) {
      if (!on[e]) continue;
      const auto at = static_cast<std::size_t>(next[static_cast<std::size_t>(e)]++);
      choice.tokens[at] = static_cast<std::int32_t>(t);
      if (gates) choice.gates[at] = scratch.gate[static_cast<std::size_t>(t * experts + e)];
    }
}

}  // namespace

void choose(const Layer& layer, std::int64_t first, std::int64_t count, ChoiceScratch& scratch, Choice& choice) {
  const std::int64_t experts = layer.experts;
  const auto cells = static_cast<std::size_t>(count * experts);
  const bool gates = layer.attributes.gate_rule != GateRule::one || layer.attributes.normalize;
  scratch.values.resize(static_cast<std::size_t>(2 * experts));
  scratch.on.resize(cells);
  scratch.gate.resize(gates ? cells : 0);
  for (std::int64_t t = 0; t < count; ++t)
    choose_for_token(layer, layer.scores + (first + t) * experts, scratch, scratch.on.data() + t * experts,
                     gates ? scratch.gate.data() + t * experts : nullptr);
  gather_pairs(count, experts, scratch, gates, choice);
  choice.idle.resize(layer.idle ? cells : 0);
  for (std::size_t i = 0; i < choice.idle.size(); ++i) choice.idle[i] = scratch.on[i] ? 0.0f : 1.0f;
}

}  // namespace moeify
