// The inner loops for avx512.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC 12 warns of its own intrinsics (GCC bug 105593)
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include "activation_names.h"
#include "kernels.h"
#include "reading.h"
#include "vector_avx512.h"

namespace moeify {
namespace avx512 {
namespace {

constexpr int kProjectTokens = 6, kAccumulateVectors = 4, kFew = 6;
#include "kernels_impl.h"

}  // namespace
}  // namespace avx512

extern const Kernels kAvx512 = avx512::kernels("avx512");

}  // namespace moeify
