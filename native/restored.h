// Weights of 4 bits: some rows at a time become floats in the cache, and the loops for floats do the rest.
#pragma once

#include "kernels.h"

namespace moeify {

// As kernels.project and kernels.accumulate, of weights packed two to a byte. scale: of the first weight.
void project_restored(const Kernels& kernels, const Integers& integers, const Projection& p, const float* scale);
void accumulate_restored(const Kernels& kernels, const Integers& integers, const Accumulation& a, const float* scale);

}  // namespace moeify
