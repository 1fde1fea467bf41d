// The hidden values times the weights going out, added to y. Included as tiles.h is.

constexpr int kAccumulateTokens = 6;  // of a tile
constexpr std::int64_t kPackedRows = 64;

// Some columns of the weights of an accumulation, rows at a distance of `stride`.
template <class W>
struct Panel {
  const W* w;
  std::int64_t stride;
};

template <int tokens, int vectors, int lines, class W>
inline void accumulate_tile(const Accumulation& a, Panel<W> panel, std::int64_t first, std::int64_t column, Steps& steps) {
  const float* h[tokens];
  float* y[tokens];
  Vec sum[tokens][vectors];
  for (int t = 0; t < tokens; ++t) {
    h[t] = a.h + (first + t) * a.h_stride;
    y[t] = a.y + (a.tokens ? a.tokens[first + t] : first + t) * a.output + column;
    for (int v = 0; v < vectors; ++v) sum[t][v] = load(y[t] + v * Vec::lanes);
  }
  const W* w = panel.w;
  for (std::int64_t r = 0; r < a.rows; ++r, w += panel.stride) {
    steps.next<lines>();
    Vec weights[vectors];
    for (int v = 0; v < vectors; ++v) weights[v] = load(w + v * Vec::lanes);
    for (int t = 0; t < tokens; ++t) {
      const Vec value = splat(h[t][r]);
      for (int v = 0; v < vectors; ++v) sum[t][v] = fma(value, weights[v], sum[t][v]);
    }
  }
  for (int t = 0; t < tokens; ++t)
    for (int v = 0; v < vectors; ++v) store(y[t] + v * Vec::lanes, sum[t][v]);
}

template <int tokens, int vectors, int lines, class W>
inline void accumulate_up_to(std::int64_t count, const Accumulation& a, Panel<W> panel, std::int64_t first, std::int64_t column,
                             Steps& steps) {
  if constexpr (tokens > 1) {
    if (count < tokens) return accumulate_up_to<tokens - 1, vectors, lines, W>(count, a, panel, first, column, steps);
  }
  accumulate_tile<tokens, vectors, lines, W>(a, panel, first, column, steps);
}

// The columns behind the last whole vector.
template <class W>
inline void accumulate_rest(const Accumulation& a, std::int64_t column) {
  const std::int64_t n = a.columns - column;
  for (std::int64_t t = 0; t < a.count; ++t) {
    float* y = a.y + (a.tokens ? a.tokens[t] : t) * a.output + column;
    const W* w = static_cast<const W*>(a.weights) + column;
    Vec sum = load_part(y, n);
    for (std::int64_t r = 0; r < a.rows; ++r, w += a.output) sum = fma(splat(a.h[t * a.h_stride + r]), load_part(w, n), sum);
    store_part(y, sum, n);
  }
}

template <int vectors, class W>
inline void accumulate_panel(const Accumulation& a, Panel<W> panel, std::int64_t tiles, std::int64_t column, Steps& steps) {
  each_tile(a.count, tiles, [&](std::int64_t first, std::int64_t count) {
    if (steps.several())
      accumulate_up_to<kAccumulateTokens, vectors, kLines, W>(count, a, panel, first, column, steps);
    else
      accumulate_up_to<kAccumulateTokens, vectors, 1, W>(count, a, panel, first, column, steps);
  });
}

// For so few tokens that memory sets the pace: two rows after the other two, as the memory lies, with y in the first cache.
template <int tokens, int rows, class W>
inline void stream_rows(const Accumulation& a, Part part, std::int64_t row) {
  const auto bytes = static_cast<std::int64_t>(sizeof(W));
  const W* w = static_cast<const W*>(a.weights) + row * a.output + part.first;
  // Asked for are the same rows `soon` columns on, and behind their end those below.
  const Reading reading = best_reading();
  const std::int64_t some = reading.soon / (rows * bytes) / Vec::lanes * Vec::lanes, soon = some < part.count ? some : part.count;
  const char* const here = reinterpret_cast<const char*>(w + soon);
  const char* const below = (row + 2 * rows <= a.rows ? reinterpret_cast<const char*>(w + rows * a.output)
                                                      : near_of(a.ahead, part.first * bytes)) + (soon - part.count) * bytes;
  float* y[tokens];
  Vec h[tokens][rows];
  for (int t = 0; t < tokens; ++t) {
    y[t] = a.y + (a.tokens ? a.tokens[t] : t) * a.output + part.first;
    for (int r = 0; r < rows; ++r) h[t][r] = splat(a.h[t * a.h_stride + row + r]);
  }
  for (std::int64_t c = 0; c + Vec::lanes <= part.count; c += Vec::lanes) {
    Vec weights[rows];
    const char* const ahead = c + soon < part.count ? here : below;
    for (int r = 0; r < rows; ++r) {
      prefetch_into(reading.first, ahead + (r * a.output + c) * bytes);
      weights[r] = load(w + r * a.output + c);
    }
    for (int t = 0; t < tokens; ++t) {
      Vec sum = load(y[t] + c);
      for (int r = 0; r < rows; ++r) sum = fma(h[t][r], weights[r], sum);
      store(y[t] + c, sum);
    }
  }
}

template <int tokens, class W>
inline void stream(const Accumulation& a, std::int64_t columns) {
  each_part(columns, [&](Part part) {
    std::int64_t row = 0;
    if constexpr (tokens > 2)
      for (; row + 4 <= a.rows; row += 4) stream_rows<tokens, 4, W>(a, part, row);
    for (; row + 2 <= a.rows; row += 2) stream_rows<tokens, 2, W>(a, part, row);
    if (row < a.rows) stream_rows<tokens, 1, W>(a, part, row);
  });
}

template <int tokens, class W>
inline void stream_up_to(const Accumulation& a, std::int64_t columns) {
  if constexpr (tokens > 1) {
    if (a.count < tokens) return stream_up_to<tokens - 1, W>(a, columns);
  }
  stream<tokens, W>(a, columns);
}

template <class W>
void accumulate(const Accumulation& a) {
  if (a.count <= kFew) {
    const std::int64_t whole = a.columns / Vec::lanes * Vec::lanes;
    if (whole) stream_up_to<kFew, W>(a, whole);
    if (whole < a.columns) accumulate_rest<W>(a, whole);
    return;
  }
  constexpr std::int64_t wide = kAccumulateVectors * Vec::lanes;
  const std::int64_t tiles = ceil_div(a.count, kAccumulateTokens);
  const W* w = static_cast<const W*>(a.weights);
  Steps steps(a.ahead, tiles * a.rows * ceil_div(a.columns, wide));
  std::int64_t column = 0;
  // Rows may lie a power of two apart and then throw each other out of the cache: where several tiles read a panel, it is
  // copied together first.
  alignas(64) float packed[kPackedRows * wide];
  const bool pack = tiles > 2 && a.rows <= kPackedRows;
  for (; column + wide <= a.columns; column += wide) {
    if (pack) {
      for (std::int64_t r = 0; r < a.rows; ++r)
        for (int v = 0; v < kAccumulateVectors; ++v)
          store(packed + r * wide + v * Vec::lanes, load(w + r * a.output + column + v * Vec::lanes));
      accumulate_panel<kAccumulateVectors, float>(a, {packed, wide}, tiles, column, steps);
    } else {
      accumulate_panel<kAccumulateVectors, W>(a, {w + column, a.output}, tiles, column, steps);
    }
  }
  for (; column + Vec::lanes <= a.columns; column += Vec::lanes)
    accumulate_panel<1, W>(a, {w + column, a.output}, tiles, column, steps);
  if (column < a.columns) accumulate_rest<W>(a, column);
}
