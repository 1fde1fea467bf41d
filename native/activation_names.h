// The closed table of activations: the names of moeify/ir/activations.py, each with its function in activations.h.
#pragma once

// X(name in the attribute, function)
#define MOEIFY_ACTIVATIONS(X)                  \
  X("identity", identity)                      \
  X("relu", relu)                              \
  X("relu6", relu6)                            \
  X("relu-squared", relu_squared)              \
  X("leaky-relu", leaky_relu)                  \
  X("leaky-relu-0.1", leaky_relu_wide)         \
  X("leaky-relu-0.5-squared", leaky_relu_squared) \
  X("gelu", gelu)                              \
  X("gelu-tanh", gelu_tanh)                    \
  X("quick-gelu", quick_gelu)                  \
  X("silu", silu)                              \
  X("mish", mish)                              \
  X("elu", elu)                                \
  X("selu", selu)                              \
  X("softplus", softplus)                      \
  X("softsign", softsign)                      \
  X("tanh", tanh_)                             \
  X("sigmoid", sigmoid)                        \
  X("hard-sigmoid", hard_sigmoid)              \
  X("hard-swish", hard_swish)

namespace moeify {

#define MOEIFY_NAME(name, function) name,
inline constexpr const char* kActivations[] = {MOEIFY_ACTIVATIONS(MOEIFY_NAME)};
#undef MOEIFY_NAME
inline constexpr int kActivationCount = sizeof(kActivations) / sizeof(kActivations[0]);
inline constexpr int kIdentity = 0;

}  // namespace moeify
