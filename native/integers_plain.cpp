// The inner loops for integers, plain.
#include <algorithm>
#include <cstring>

#include "bytes_plain.h"
#include "kernels.h"
#include "reading.h"
#include "stored.h"

namespace moeify {
namespace plain {
namespace {

constexpr int kTokens = 2, kTokensOfOne = 6;
#include "integers_impl.h"

}  // namespace
}  // namespace plain

extern const Integers kIntegersPlain = plain::integers("plain");

}  // namespace moeify
