// The inner loops on vectors, written once. Included once an instruction set, after its vector header and the sizes
// kProjectTokens, kAccumulateVectors and kFew, inside its namespace. Up to kFew tokens memory sets the pace: weights are streamed
// in their order.
//
// A tile of tokens and rows (or columns) is held in registers. The sum of one value of h or y is made in the same order
// whatever the tile, so that a token's result does not depend on the other tokens of the call.

#include "activations.h"
#include "tiles.h"
#include "parts.h"
#include "accumulate.h"
#include "project.h"

template <Vec (*act)(Vec)>
void finish(float* h, const float* other, float gate, std::int64_t n) {
  const Vec factor = splat(gate);
  for (std::int64_t i = 0; i < n; i += Vec::lanes) {
    const std::int64_t left = n - i;
    const bool whole = left >= Vec::lanes;
    Vec value = act(whole ? load(h + i) : load_part(h + i, left));
    if (other) value = value * (whole ? load(other + i) : load_part(other + i, left));
    value = value * factor;
    whole ? store(h + i, value) : store_part(h + i, value, left);
  }
}

#define MOEIFY_FINISH(name, function) finish<function>,
constexpr void (*kFinish[])(float*, const float*, float, std::int64_t) = {MOEIFY_ACTIVATIONS(MOEIFY_FINISH)};
#undef MOEIFY_FINISH

constexpr Kernels kernels(const char* name) {
  return {name,
          kAccumulateVectors * Vec::lanes,
          {project<float>, project<Half>, project<BFloat>},
          {accumulate<float>, accumulate<Half>, accumulate<BFloat>},
          kFinish};
}
