// The inner loops for avx2.
#include "activation_names.h"
#include "kernels.h"
#include "reading.h"
#include "vector_avx2.h"

namespace moeify {
namespace avx2 {
namespace {

constexpr int kProjectTokens = 3, kAccumulateVectors = 2, kFew = 4;
#include "kernels_impl.h"

}  // namespace
}  // namespace avx2

extern const Kernels kAvx2 = avx2::kernels("avx2");

}  // namespace moeify
