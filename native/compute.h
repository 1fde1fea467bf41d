// One call of the layer, from scores to y.
#pragma once

#include <atomic>

#include "kernels.h"
#include "layer.h"
#include "plan.h"

namespace moeify {

// Writes layer.y. `threads` is a guess of how many threads the pool has, at least 1, and is made better by each call.
void compute(const Layer& layer, const Kernels& kernels, const Integers& integers, const Pool& pool, std::atomic<int>& threads,
             Scratch& scratch);

}  // namespace moeify
