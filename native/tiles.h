// What both inner loops share: sizes of tiles, runs of tokens, and reading ahead. Included once an
// instruction set, after its vector header and inside its namespace.

// Inlined whatever the compiler thinks of its size.
#if defined(__GNUC__)
#define MOEIFY_INLINED __attribute__((always_inline))
#else
#define MOEIFY_INLINED
#endif

// Asks for what is ahead evenly over the steps of a kernel, up to kLines cache lines a step.
constexpr int kLines = 4, kLine = 64;

struct Steps {
  const char* at;
  std::int64_t step;  // bytes

  Steps(const Ahead& ahead, std::int64_t count) : at(ahead.at), step(count ? (ahead.end - ahead.at) / count : 0) {
    if (step > kLines * kLine) step = kLines * kLine;
  }

  bool several() const { return step > kLine; }

  template <int lines>
  void next() {
    for (int i = 0; i < lines; ++i) prefetch(at + i * (step / lines));
    at += step;
  }
};

// The byte that lies `offset` behind the start of what is ahead, at most its end.
inline const char* near_of(const Ahead& ahead, std::int64_t offset) {
  const std::int64_t size = ahead.end - ahead.at, at = offset < size ? offset : size;
  return ahead.at + (at > 0 ? at : 0);
}

inline std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

// Calls f(first, count) on `tiles` runs of nearly equal length that make up [0, count).
template <class F>
inline void each_tile(std::int64_t count, std::int64_t tiles, F f) {
  for (std::int64_t i = 0; i < tiles; ++i) {
    const std::int64_t first = count * i / tiles;
    f(first, count * (i + 1) / tiles - first);
  }
}
