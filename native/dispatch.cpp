// Which inner loops this processor can run.
#include <cstdlib>
#include <cstring>

#include "kernels.h"

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

}  // namespace

const Kernels& best_kernels() {
  static const Kernels& best = select();
  return best;
}

const Integers& best_integers() {
  static const Integers& best = select_integers();
  return best;
}

}  // namespace moeify
