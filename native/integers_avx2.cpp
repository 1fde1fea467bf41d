// The inner loops for integers, avx2.
#include <algorithm>
#include <cstring>

#include "bytes_avx2.h"
#include "kernels.h"
#include "reading.h"
#include "stored.h"

namespace moeify {
namespace avx2 {
namespace {

constexpr int kTokens = 2, kTokensOfOne = 6;
#include "integers_impl.h"

}  // namespace
}  // namespace avx2

extern const Integers kIntegersAvx2 = avx2::integers("avx2");

}  // namespace moeify
