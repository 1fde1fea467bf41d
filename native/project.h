// x times the weights of neurons: tiles of tokens and rows whose sums stay in registers. Included as tiles.h is.

constexpr int kRows = 4;  // of a tile

// The sum of the first part begins with the bias.
inline void add_to(float& h, Part part, const float* bias, std::int64_t row, float sum) {
  h = (part.first ? h : bias ? bias[row] : 0.0f) + sum;
}

template <int tokens, int lines, class W>
inline void project_tile(const float* const* x, const W* const (&w)[kRows], std::int64_t count, float (&sums)[tokens][kRows],
                         Steps& steps) {
  Vec sum[tokens][kRows];
  for (auto& row : sum)
    for (Vec& value : row) value = zero();
  const auto add = [&](auto read, std::int64_t k) {
    Vec weights[kRows];
    for (int r = 0; r < kRows; ++r) weights[r] = read(w[r] + k);
    for (int t = 0; t < tokens; ++t) {
      const Vec value = read(x[t] + k);
      for (int r = 0; r < kRows; ++r) sum[t][r] = fma(value, weights[r], sum[t][r]);
    }
  };
  std::int64_t k = 0;
  for (; k + Vec::lanes <= count; k += Vec::lanes) {
    steps.next<lines>();
    add([](const auto* p) { return load(p); }, k);
  }
  if (k < count) add([=](const auto* p) { return load_part(p, count - k); }, k);
  for (int t = 0; t < tokens; ++t) store_sums(sums[t], sum[t][0], sum[t][1], sum[t][2], sum[t][3]);
}

template <int tokens, int lines, class W>
inline void project_some(const Projection& p, Part part, std::int64_t first, std::int64_t row, Steps& steps) {
  const W* w[kRows];
  const std::int64_t rows = p.rows - row < kRows ? p.rows - row : kRows;
  for (int r = 0; r < kRows; ++r)
    w[r] = static_cast<const W*>(p.weights) + (row + (r < rows ? r : rows - 1)) * p.hidden + part.first;
  const float* x[tokens];
  for (int t = 0; t < tokens; ++t) x[t] = p.x + (p.tokens ? p.tokens[first + t] : first + t) * p.x_stride + part.first;
  float sums[tokens][kRows];
  project_tile<tokens, lines, W>(x, w, part.count, sums, steps);
  for (int t = 0; t < tokens; ++t)
    for (std::int64_t r = 0; r < rows; ++r) add_to(p.h[(first + t) * p.h_stride + row + r], part, p.bias, row + r, sums[t][r]);
}

template <int tokens, int lines, class W>
inline void project_up_to(std::int64_t count, const Projection& p, Part part, std::int64_t first, Steps& steps) {
  if constexpr (tokens > 1) {
    if (count < tokens) return project_up_to<tokens - 1, lines, W>(count, p, part, first, steps);
  }
  for (std::int64_t row = 0; row < p.rows; row += kRows) project_some<tokens, lines, W>(p, part, first, row, steps);
}

// What to ask for while some rows are streamed side by side: memory as it lies, where they all lie within `soon` bytes; else, as
// the last ones of them would be asked for too late, the same rows some columns on, and behind their end those below.
struct Ask {
  Reading reading = best_reading();
  std::int64_t apart;         // between the lines of one step, in bytes
  std::int64_t step;          // from one step to the next, in bytes
  std::int64_t turn;          // the column at which `below` follows
  const char *here, *below;

  Ask(const Projection& p, std::int64_t row, std::int64_t rows, std::int64_t bytes) {
    const std::int64_t width = p.hidden * bytes, left = (p.rows - row) * width, line = Vec::lanes * bytes;
    const char* const w = static_cast<const char*>(p.weights) + row * width;
    const auto from = [&](std::int64_t offset) { return offset < left ? w + offset : near_of(p.ahead, offset - left); };
    const bool along = rows * width <= reading.soon;
    const std::int64_t columns = reading.soon / (rows * line) * Vec::lanes;
    apart = along ? line : width;
    step = along ? rows * line : line;
    turn = along ? p.hidden : (p.hidden - columns) / Vec::lanes * Vec::lanes;
    here = along ? from(reading.soon) : w + columns * bytes;
    below = from(rows * width);
  }
};

// For so few tokens that memory sets the pace: some rows after the others, so that a token's x is loaded once for all of them.
template <int tokens, int rows, class W>
inline void stream_rows(const Projection& p, std::int64_t row) {
  const auto bytes = static_cast<std::int64_t>(sizeof(W));
  const W* const w = static_cast<const W*>(p.weights) + row * p.hidden;
  const Ask ask(p, row, rows, bytes);
  const char* ahead = ask.here;
  each_part(p.hidden, [&](Part part) {
    const float* x[tokens];
    for (int t = 0; t < tokens; ++t) x[t] = p.x + (p.tokens ? p.tokens[t] : t) * p.x_stride + part.first;
    constexpr int count = (tokens * rows + 3) / 4 * 4;  // of sums, token by token
    Vec sum[count];
    for (Vec& value : sum) value = zero();
    const auto add = [&](auto read, std::int64_t k) {
      Vec weights[rows];
      for (int r = 0; r < rows; ++r) weights[r] = read(w + r * p.hidden + part.first + k);
      for (int t = 0; t < tokens; ++t) {
        const Vec value = read(x[t] + k);
        for (int r = 0; r < rows; ++r) sum[t * rows + r] = fma(value, weights[r], sum[t * rows + r]);
      }
    };
    std::int64_t k = 0;
    const auto add_until = [&](std::int64_t end) {
      for (; k < end; k += Vec::lanes, ahead += ask.step) {
        for (int r = 0; r < rows; ++r) prefetch_into(ask.reading.first, ahead + r * ask.apart);
        add([](const auto* from) { return load(from); }, k);
      }
    };
    const std::int64_t whole = part.count / Vec::lanes * Vec::lanes, turn = ask.turn - part.first;
    if (turn >= 0 && turn < whole) {
      add_until(turn);
      ahead = ask.below;
    }
    add_until(whole);
    if (k < part.count) add([&](const auto* from) { return load_part(from, part.count - k); }, k);
    float sums[count];
    for (int i = 0; i < count; i += 4) store_sums(sums + i, sum[i], sum[i + 1], sum[i + 2], sum[i + 3]);
    for (int t = 0; t < tokens; ++t)
      for (int r = 0; r < rows; ++r) add_to(p.h[t * p.h_stride + row + r], part, p.bias, row + r, sums[t * rows + r]);
  });
}

template <int tokens, class W>
inline void stream(const Projection& p) {
  std::int64_t row = 0;
  if constexpr (tokens > 2 && Vec::lanes == 16)  // as many sums as registers hold: x comes from the second cache half as often
    for (; row + 4 <= p.rows; row += 4) stream_rows<tokens, 4, W>(p, row);
  if (tokens > 2 || 2 * p.hidden * static_cast<std::int64_t>(sizeof(W)) <= best_reading().soon)
    for (; row + 2 <= p.rows; row += 2) stream_rows<tokens, 2, W>(p, row);
  for (; row < p.rows; ++row) stream_rows<tokens, 1, W>(p, row);
}

template <int tokens, class W>
inline void stream_up_to(const Projection& p) {
  if constexpr (tokens > 1) {
    if (p.count < tokens) return stream_up_to<tokens - 1, W>(p);
  }
  stream<tokens, W>(p);
}

template <class W>
void project(const Projection& p) {
  if (p.count <= kFew) return stream_up_to<kFew, W>(p);
  const std::int64_t tiles = ceil_div(p.count, kProjectTokens);
  Steps steps(p.ahead, tiles * ceil_div(p.rows, kRows) * (p.hidden / Vec::lanes));
  each_part(p.hidden, [&](Part part) {
    each_tile(p.count, tiles, [&](std::int64_t first, std::int64_t count) {
      if (steps.several())
        project_up_to<kProjectTokens, kLines, W>(count, p, part, first, steps);
      else
        project_up_to<kProjectTokens, 1, W>(count, p, part, first, steps);
    });
  });
}
