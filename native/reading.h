// How weights are read ahead of a stream of them.
#pragma once

#include <cstdint>

namespace moeify {

// first: into the first cache, not the second. soon: so many bytes ahead.
struct Reading {
  bool first;
  std::int64_t soon;
};

// The faster one on this processor; MOEIFY_NATIVE_AHEAD (first, second) asks for one of them.
const Reading& best_reading();

}  // namespace moeify
