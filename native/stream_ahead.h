// Reading ahead of a stream of bytes, in the order of memory. Included as tiles.h is, after it.

struct Stream {
  const char* end;  // of what is streamed now
  Ahead ahead;      // what comes then

  // For a step of `bytes` at p, which a later one with another `part` of `parts` may come back to: its lines from `part` on.
  template <class W>
  void ask(const W* p, int bytes, int part = 0, int parts = 1) const {
    const std::int64_t left = end - reinterpret_cast<const char*>(p);
    const char* at = left > kSoon ? reinterpret_cast<const char*>(p) + kSoon : near_of(ahead, kSoon - left);
    for (int i = part * kLine; i < bytes; i += parts * kLine) prefetch_surely(at + i);
  }
};
