// Which inner loops this processor can run.
#include <cstdlib>
#include <cstring>

#include "kernels.h"
#include "reading.h"
#if defined(MOEIFY_X86)
#include <cpuid.h>
#endif

namespace moeify {
namespace {

#if defined(MOEIFY_X86)
// __builtin_cpu_supports asks the operating system, too, whether it keeps the registers.
bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"); }
bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#endif

const Kernels& select() {
#if defined(MOEIFY_X86)
  const char* asked = std::getenv("MOEIFY_NATIVE_ISA");
  const auto at_most = [&](const char* name) { return asked && std::strcmp(asked, name) == 0; };
  __builtin_cpu_init();
  if (at_most("plain")) return kPlain;
  if (has_avx512() && !at_most("avx2")) return kAvx512;
  if (has_avx2()) return kAvx2;
#endif
  return kPlain;
}

const Integers& select_integers() {
#if defined(MOEIFY_X86)
  const Kernels& floats = best_kernels();
  if (&floats == &kAvx512 && __builtin_cpu_supports("avx512vnni")) return kIntegersVnni;
  if (&floats != &kPlain) return kIntegersAvx2;
#endif
  return kIntegersPlain;
}

// Bytes of one token, in GB/s, into the first and into the second cache: 38 to 44 and 34 to 36 on a Zen 5; floats on a Zen 4, which
// has fewer buffers for lines on their way to the first one, 12 to 13 and 15 to 20. Other processors are taken for the latter.
Reading select_reading() {
  constexpr Reading first{true, 12288}, second{false, 16384};
  if (const char* asked = std::getenv("MOEIFY_NATIVE_AHEAD")) return std::strcmp(asked, "first") == 0 ? first : second;
#if defined(MOEIFY_X86)
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid(0, &a, &b, &c, &d) || c != signature_AMD_ecx) return second;
  if (__get_cpuid(1, &a, &b, &c, &d) && (a >> 8 & 15) + (a >> 20 & 255) >= 26) return first;  // the family of Zen 5
#endif
  return second;
}

}  // namespace

const Reading& best_reading() {
  static const Reading best = select_reading();
  return best;
}

const Kernels& best_kernels() {
  static const Kernels& best = select();
  return best;
}

const Integers& best_integers() {
  static const Integers& best = select_integers();
  return best;
}

}  // namespace moeify
