// Reading ahead of a stream of bytes, in the order of memory. Included as tiles.h is, after it.

struct Stream {
  const char* end;  // of what is streamed now
  Ahead ahead;      // what comes then
  Reading reading = best_reading();

  // For a step of `bytes` at p, which a later one with another `part` of `parts` may come back to: its lines from `part` on.
  template <class W>
  void ask(const W* p, int bytes, int part = 0, int parts = 1) const {
    const std::int64_t left = end - reinterpret_cast<const char*>(p);
    const std::int64_t soon = reading.soon;
    const char* at = left > soon ? reinterpret_cast<const char*>(p) + soon : near_of(ahead, soon - left);
    for (int i = part * kLine; i < bytes; i += parts * kLine) prefetch_into(reading.first, at + i);
  }
};
