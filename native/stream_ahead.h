// Reading ahead of a stream of bytes: in the order of memory, into the second cache, whose own reading ahead then helps. (Into the
// first one there are too few buffers for lines under way: measured 12 GB/s against 15 to 20.) Included as tiles.h is, after it.

constexpr std::int64_t kSoon = 16384;  // bytes

struct Stream {
  const char* end;  // of what is streamed now
  Ahead ahead;      // what comes then

  // For a step of `bytes` at p.
  template <class W>
  void ask(const W* p, int bytes) const {
    const std::int64_t left = end - reinterpret_cast<const char*>(p);
    const char* at = left > kSoon ? reinterpret_cast<const char*>(p) + kSoon : near_of(ahead, kSoon - left);
    for (int i = 0; i < bytes; i += kLine) prefetch_surely(at + i);
  }
};
