// Reading ahead of a stream of bytes, in the order of memory. Included as tiles.h is, after it.

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
