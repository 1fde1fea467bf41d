// The inner loops for plain.
#include "activation_names.h"
#include "kernels.h"
#include "reading.h"
#include "vector_plain.h"

namespace moeify {
namespace plain {
namespace {

constexpr int kProjectTokens = 2, kAccumulateVectors = 2, kFew = 4;
#include "kernels_impl.h"

}  // namespace
}  // namespace plain

extern const Kernels kPlain = plain::kernels("plain");

}  // namespace moeify
