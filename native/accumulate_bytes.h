// The hidden values times the weights going out, both bytes, added to y. Rows of weights lie one behind the other, and a sum goes
// over rows: four rows are interleaved in registers, so that the four bytes of a column meet four hidden values. Included as
// tiles.h is.

constexpr std::int64_t kColumns = 4 * kLanes;  // of a panel: four registers of sums

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

inline float* y_of(const Accumulation8& a, std::int64_t t) { return a.y + (a.tokens ? a.tokens[t] : t) * a.output; }

// Panels of the columns [from, to), one behind the other.
inline void weave(const Accumulation8& a, std::int64_t from, std::int64_t to, std::uint8_t* panel) {
  for (std::int64_t column = from; column < to; column += kColumns)
    for (std::int64_t q = 0; q < quads(a); ++q, panel += 4 * Bytes::size) {
      Bytes quad[4];
      if (to - column >= kColumns)
        read_quad(a, q, column, [](const void* p) { return load_bytes(p); }, quad);
      else
        read_quad(a, q, column, [=](const void* p) { return load_bytes_part(p, to - column); }, quad);
      in_order(quad);
      for (int v = 0; v < 4; ++v) store_bytes(panel + v * Bytes::size, quad[v]);
    }
}

template <int tokens, int lines>
inline void accumulate_up_to(std::int64_t count, const Accumulation8& a, const std::uint8_t* panel, std::int64_t first,
                             std::int64_t from, std::int64_t to, Steps& steps) {
  if constexpr (tokens > 1) {
    if (count < tokens) return accumulate_up_to<tokens - 1, lines>(count, a, panel, first, from, to, steps);
  }
  const std::int8_t* h[tokens];
  float *y[tokens], step[tokens];
  for (int t = 0; t < tokens; ++t) {
    h[t] = a.h.values + (first + t) * a.h.stride;
    y[t] = y_of(a, first + t);
    step[t] = a.h.step[first + t];
  }
  for (std::int64_t column = from; column + kColumns <= to; column += kColumns, panel += quads(a) * 4 * Bytes::size) {
    Ints sum[tokens][4];
    for (int t = 0; t < tokens; ++t)
      for (Ints& value : sum[t]) value = start_of(a.h, first + t);
    panel_tile<tokens, 4, lines>(panel, quads(a), h, sum, steps);
    for (int t = 0; t < tokens; ++t)
      for (int v = 0; v < 4; ++v) add_scaled(y[t] + column + v * kLanes, sum[t][v], step[t]);
  }
}

// The columns behind the last whole panel.
inline void accumulate_rest(const Accumulation8& a, const std::uint8_t* panel, std::int64_t column, Steps& steps) {
  for (std::int64_t t = 0; t < a.count; ++t) {
    Ints sum[1][4];
    for (Ints& value : sum[0]) value = start_of(a.h, t);
    panel_tile<1, 4, 1>(panel, quads(a), {a.h.values + t * a.h.stride}, sum, steps);
    std::int32_t whole[kColumns];
    for (int v = 0; v < 4; ++v) store_ints(whole + v * kLanes, sum[0][v]);
    float* y = y_of(a, t);
    for (std::int64_t c = column; c < a.columns; ++c) y[c] += static_cast<float>(whole[c - column]) * a.h.step[t];
  }
}

// Sums of `columns` columns for each token, rows at a distance of `stride`: what they begin with ..
inline void begin_sums(const Accumulation8& a, std::int64_t columns, std::int32_t* sums, std::int64_t stride) {
  for (std::int64_t t = 0; t < a.count; ++t) std::fill(sums + t * stride, sums + t * stride + columns, minus(0, a.h.shift[t]));
}

// .. and, in the order of `interleave` by then, what y gets of them.
inline void add_sums(const Accumulation8& a, std::int64_t from, std::int64_t to, const std::int32_t* sums, std::int64_t stride) {
  for (std::int64_t t = 0; t < a.count; ++t)
    for (std::int64_t column = from; column < to; column += kColumns) {
      Ints four[4];
      for (int v = 0; v < 4; ++v) four[v] = load_ints(sums + t * stride + (column - from) + v * kLanes);
      in_order(four);
      for (int v = 0; v < 4; ++v) add_scaled(y_of(a, t) + column + v * kLanes, four[v], a.h.step[t]);
    }
}

// A panel of `together` quads of rows from q on.
template <int together>
struct Quads {
  Weights weights[together][4];

  MOEIFY_INLINED Quads(const Accumulation8& a, std::int64_t q, std::int64_t column) {
    for (int i = 0; i < together; ++i) {
      Bytes quad[4];
      read_quad(a, q + i, column, [](const void* p) { return load_bytes(p); }, quad);
      for (int v = 0; v < 4; ++v) weights[i][v] = weights_of(quad[v]);
    }
  }

  // Adds to the sums at `at` the products with the hidden values h.
  MOEIFY_INLINED void add(const std::int8_t* h, std::int32_t* at) const {
    Bytes value[together];
    for (int i = 0; i < together; ++i) value[i] = splat_four(h + 4 * i);
    for (int v = 0; v < 4; ++v) {
      Ints sum = load_ints(at + v * kLanes);
      for (int i = 0; i < together; ++i) sum = dot(sum, weights[i][v], value[i]);
      store_ints(at + v * kLanes, sum);
    }
  }
};

template <int tokens, int together>
inline void stream_few_quads(const Accumulation8& a, std::int64_t q, std::int64_t from, std::int64_t to, std::int32_t* sums,
                             std::int64_t most, const Stream& ahead) {
  for (std::int64_t column = from; column < to; column += kColumns) {
    ahead.ask(a.weights + 4 * q * a.output + from + 4 * together * (column - from), 4 * together * Bytes::size);
    const Quads<together> quads(a, q, column);
    for (int t = 0; t < tokens; ++t) quads.add(a.h.values + t * a.h.stride + 4 * q, sums + t * most + (column - from));
  }
}

// For one token or two, in the order of memory, the sums in the first cache.
template <int tokens>
inline void stream_few(const Accumulation8& a, std::int64_t columns) {
  constexpr std::int64_t most = 4096 / kColumns * kColumns;
  alignas(64) std::int32_t sums[tokens * most];
  const Stream ahead{reinterpret_cast<const char*>(a.weights + (a.rows - 1) * a.output + a.columns), a.ahead};
  for (std::int64_t from = 0; from < columns; from += most) {
    const std::int64_t to = from + most < columns ? from + most : columns;
    begin_sums(a, to - from, sums, most);
    std::int64_t q = 0;
    for (; q + 2 <= quads(a); q += 2) stream_few_quads<tokens, 2>(a, q, from, to, sums, most, ahead);
    for (; q < quads(a); ++q) stream_few_quads<tokens, 1>(a, q, from, to, sums, most, ahead);
    add_sums(a, from, to, sums, most);
  }
}

// Inlined, as it costs a tenth more otherwise.
template <int together>
MOEIFY_INLINED inline void stream_more_quads(const Accumulation8& a, std::int64_t q, std::int64_t from, std::int64_t to,
                                             std::int32_t* sums, std::int64_t stride) {
  // The same rows are asked for some columns on: rows further down may lie in the sets of the first cache that these do.
  const Reading reading = best_reading();
  const std::int64_t some = reading.soon / (4 * together) / kColumns * kColumns, soon = some < to - from ? some : to - from;
  const std::uint8_t* rows = a.weights + 4 * q * a.output;
  const std::uint8_t* below = q + together < quads(a) ? rows + 4 * together * a.output : a.weights + (to - from);
  for (std::int64_t column = from; column < to; column += kColumns) {
    const std::int64_t ahead = column + soon;
    const std::uint8_t* next = ahead < to ? rows + ahead : below + from + (ahead - to);
    for (int r = 0; r < 4 * together; ++r) prefetch_into(reading.first, reinterpret_cast<const char*>(next + r * a.output));
    const Quads<together> quads(a, q, column);
    for (std::int64_t t = 0; t < a.count; ++t)
      quads.add(a.h.values + t * a.h.stride + 4 * q, sums + t * stride + (column - from));
  }
}

// For more, of whom memory sets the pace still: as many rows together as registers hold, each asking for those below, and as many
// columns as leave the sums of all tokens near.
inline void stream_more(const Accumulation8& a, std::int64_t columns) {
  constexpr std::int64_t near = 32 << 10;  // bytes
  constexpr int together = Bytes::size == 64 ? 4 : 2;
  const std::int64_t panels = columns / kColumns, chunks = ceil_div(panels, near / (a.count * kColumns * 4));
  const std::int64_t stride = ceil_div(panels, chunks) * kColumns + kLanes;  // no power of 2: tokens would be in each other's way
  auto* sums = reinterpret_cast<std::int32_t*>(room_of(*a.room, a.count * stride * 4));
  each_tile(panels, chunks, [&](std::int64_t first, std::int64_t count) {
    const std::int64_t from = first * kColumns, to = from + count * kColumns;
    begin_sums(a, to - from, sums, stride);
    std::int64_t q = 0;
    for (; q + together <= quads(a); q += together) stream_more_quads<together>(a, q, from, to, sums, stride);
    for (; q < quads(a); ++q) stream_more_quads<1>(a, q, from, to, sums, stride);
    add_sums(a, from, to, sums, stride);
  });
}

inline void stream(const Accumulation8& a, std::int64_t columns) {
  if (a.count == 1) return stream_few<1>(a, columns);
  if (a.count == 2) return stream_few<2>(a, columns);
  stream_more(a, columns);
}

void accumulate(const Accumulation8& a) {
  if (a.rows == 0 || a.count == 0) return;
  std::int64_t column = 0;
  if (a.count <= kStreamed) {
    column = a.columns / kColumns * kColumns;
    if (column) stream(a, column);
  }
  // As many panels as stay in the first cache, so that a token's y is read along its row.
  constexpr std::int64_t room = 16 << 10;
  const std::int64_t panel = quads(a) * 4 * Bytes::size, step = (room / panel > 1 ? room / panel : 1) * kColumns;
  std::uint8_t* panels = room_of(*a.room, step / kColumns * panel);
  const std::int64_t tiles = ceil_div(a.count, kTokens);
  Steps steps(a.ahead, tiles * quads(a) * ceil_div(a.columns, kColumns));
  for (; column < a.columns; column += step) {
    const std::int64_t to = column + step < a.columns ? column + step : a.columns;
    weave(a, column, to, panels);
    each_tile(a.count, tiles, [&](std::int64_t first, std::int64_t count) {
      if (steps.several())
        accumulate_up_to<kTokens, kLines>(count, a, panels, first, column, to, steps);
      else
        accumulate_up_to<kTokens, 1>(count, a, panels, first, column, to, steps);
    });
    if (const std::int64_t rest = (to - column) % kColumns)
      accumulate_rest(a, panels + (to - column) / kColumns * panel, to - rest, steps);
  }
}
