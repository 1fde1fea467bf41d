// The inner loops for integers, AVX-512 with VNNI.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC 12 warns of its own intrinsics (GCC bug 105593)
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include <algorithm>
#include <cstring>

#include "bytes_vnni.h"
#include "kernels.h"
#include "reading.h"
#include "stored.h"

namespace moeify {
namespace vnni {
namespace {

constexpr int kTokens = 6, kTokensOfOne = 12;
#include "integers_impl.h"

}  // namespace
}  // namespace vnni

extern const Integers kIntegersVnni = vnni::integers("vnni");

}  // namespace moeify
