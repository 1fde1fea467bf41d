// The hidden values times the weights going out, both bytes, added to y. Rows of weights lie one behind the other, and a sum goes
// over rows: four rows are interleaved in registers, so that the four bytes of a column meet four hidden values. Included as
// tiles.h is.

constexpr std::int64_t kColumns = 4 * Bytes::size / 4;  // of a panel: four registers of sums

inline std::int64_t quads(const Accumulation8& a) { return ceil_div(a.rows, 4); }

// Rows 4 q .. of the columns from `column` on. Behind the last row it comes again, where h is zero.
template <class Read>
inline void read_quad(const Accumulation8& a, std::int64_t q, std::int64_t column, Read read, Bytes (&out)[4]) {
  Bytes rows[4];
  for (int r = 0; r < 4; ++r) {
    const std::int64_t row = 4 * q + r < a.rows ? 4 * q + r : a.rows - 1;
    rows[r] = read(a.weights + row * a.output + column);
  }
  interleave(rows, out);
}

// y[token, column ..] += the sums times the step of h.
inline void add_columns(const Accumulation8& a, std::int64_t t, std::int64_t column, std::int64_t count, const Ints (&sums)[4]) {
  std::int32_t whole[kColumns];
  store_columns(whole, sums);
  float* y = a.y + (a.tokens ? a.tokens[t] : t) * a.output + column;
  const std::int32_t shift = a.h.shift[t];
  const float step = a.h.step[t];
  if (count == kColumns) {
    for (std::int64_t c = 0; c < kColumns; ++c) y[c] += static_cast<float>(minus(whole[c], shift)) * step;
  } else {
    for (std::int64_t c = 0; c < count; ++c) y[c] += static_cast<float>(minus(whole[c], shift)) * step;
  }
}

// A panel of interleaved quads, [quads, 4 registers], on some tokens.
template <int tokens, int lines>
inline void accumulate_tile(const Accumulation8& a, const std::uint8_t* panel, std::int64_t first, std::int64_t column,
                            std::int64_t count, Steps& steps) {
  const std::int8_t* h[tokens];
  Ints sum[tokens][4];
  for (int t = 0; t < tokens; ++t) {
    h[t] = a.h.values + (first + t) * a.h.stride;
    for (Ints& value : sum[t]) value = no_ints();
  }
  for (std::int64_t q = 0; q < quads(a); ++q, panel += 4 * Bytes::size) {
    steps.next<lines>();
    Weights weights[4];
    for (int v = 0; v < 4; ++v) weights[v] = weights_of(load_bytes(panel + v * Bytes::size));
    for (int t = 0; t < tokens; ++t) {
      const Bytes value = splat_four(h[t] + 4 * q);
      for (int v = 0; v < 4; ++v) sum[t][v] = dot(sum[t][v], weights[v], value);
    }
  }
  for (int t = 0; t < tokens; ++t) add_columns(a, first + t, column, count, sum[t]);
}

template <int tokens, int lines>
inline void accumulate_up_to(std::int64_t some, const Accumulation8& a, const std::uint8_t* panel, std::int64_t first,
                             std::int64_t column, std::int64_t count, Steps& steps) {
  if constexpr (tokens > 1) {
    if (some < tokens) return accumulate_up_to<tokens - 1, lines>(some, a, panel, first, column, count, steps);
  }
  accumulate_tile<tokens, lines>(a, panel, first, column, count, steps);
}

// Columns [column, column + count), count at most kColumns, on all tokens.
inline void accumulate_panel(const Accumulation8& a, std::int64_t column, std::int64_t count, std::int64_t tiles, Steps& steps) {
  std::uint8_t* panel = a.room->data();
  Bytes quad[4];
  for (std::int64_t q = 0; q < quads(a); ++q) {
    if (count == kColumns)
      read_quad(a, q, column, [](const void* p) { return load_bytes(p); }, quad);
    else
      read_quad(a, q, column, [=](const void* p) { return load_bytes_part(p, count); }, quad);
    for (int v = 0; v < 4; ++v) store_bytes(panel + (4 * q + v) * Bytes::size, quad[v]);
  }
  each_tile(a.count, tiles, [&](std::int64_t first, std::int64_t some) {
    if (steps.several())
      accumulate_up_to<kTokens, kLines>(some, a, panel, first, column, count, steps);
    else
      accumulate_up_to<kTokens, 1>(some, a, panel, first, column, count, steps);
  });
}

// For so few tokens that memory sets the pace: eight rows after the other eight, as the memory lies, the sums in the first cache.
template <int tokens>
inline void stream_quads(const Accumulation8& a, std::int64_t q, std::int64_t from, std::int64_t to, std::int32_t* sums,
                         std::int64_t most, const Stream& ahead) {
  constexpr int together = 2;
  const std::int64_t last = quads(a) - 1;
  for (std::int64_t column = from; column < to; column += kColumns) {
    ahead.ask(a.weights + 4 * q * a.output + from + 4 * together * (column - from), 4 * together * Bytes::size);
    Weights weights[together][4];
    for (int i = 0; i < together; ++i) {
      Bytes quad[4];
      read_quad(a, q + i < last ? q + i : last, column,
                [](const void* p) { return load_bytes(p); }, quad);
      for (int v = 0; v < 4; ++v) weights[i][v] = weights_of(quad[v]);
    }
    for (int t = 0; t < tokens; ++t) {
      std::int32_t* at = sums + t * most + (column - from);
      const std::int8_t* h = a.h.values + t * a.h.stride + 4 * q;
      const bool both = q + 1 <= last;
      const Bytes first = splat_four(h), second = both ? splat_four(h + 4) : Bytes{};
      for (int v = 0; v < 4; ++v) {
        Ints sum = dot(load_ints(at + v * (kColumns / 4)), weights[0][v], first);
        if (both) sum = dot(sum, weights[1][v], second);
        store_ints(at + v * (kColumns / 4), sum);
      }
    }
  }
}

template <int tokens>
inline void stream(const Accumulation8& a, std::int64_t columns) {
  constexpr std::int64_t most = (tokens > 2 ? 2048 : 4096) / kColumns * kColumns;
  alignas(64) std::int32_t sums[tokens * most];
  const Stream ahead{reinterpret_cast<const char*>(a.weights + (a.rows - 1) * a.output + a.columns), a.ahead};
  for (std::int64_t from = 0; from < columns; from += most) {
    const std::int64_t to = from + most < columns ? from + most : columns;
    std::memset(sums, 0, sizeof sums);
    for (std::int64_t q = 0; q < quads(a); q += 2) stream_quads<tokens>(a, q, from, to, sums, most, ahead);
    for (int t = 0; t < tokens; ++t)
      for (std::int64_t column = from; column < to; column += kColumns) {
        Ints four[4];
        for (int v = 0; v < 4; ++v) four[v] = load_ints(sums + t * most + (column - from) + v * (kColumns / 4));
        add_columns(a, t, column, kColumns, four);
      }
  }
}

template <int tokens>
inline void stream_up_to(const Accumulation8& a, std::int64_t columns) {
  if constexpr (tokens > 1) {
    if (a.count < tokens) return stream_up_to<tokens - 1>(a, columns);
  }
  stream<tokens>(a, columns);
}

void accumulate(const Accumulation8& a) {
  if (a.rows == 0 || a.count == 0) return;
  const auto room = static_cast<std::size_t>(quads(a) * 4 * Bytes::size);
  if (a.room->size() < room) a.room->resize(room);
  const std::int64_t tiles = ceil_div(a.count, kTokens);
  Steps steps(a.ahead, tiles * quads(a) * ceil_div(a.columns, kColumns));
  std::int64_t column = 0;
  if (a.count <= kFew) {
    column = a.columns / kColumns * kColumns;
    if (column) stream_up_to<kFew>(a, column);
  }
  for (; column < a.columns; column += kColumns)
    accumulate_panel(a, column, a.columns - column < kColumns ? a.columns - column : kColumns, tiles, steps);
}
