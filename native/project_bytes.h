// x times the weights of neurons, both bytes: tiles of tokens and rows whose sums stay in registers. Included as tiles.h is.

constexpr int kRows = 4;  // of a tile

// Next: Steps, or a Stream where memory sets the pace.
template <int tokens, class Next>
inline void project_tile(const std::int8_t* const (&x)[tokens], const std::uint8_t* const (&w)[kRows], std::int64_t hidden,
                         std::int32_t (&sums)[tokens][kRows], const Next& next) {
  Ints sum[tokens][kRows];
  for (auto& row : sum)
    for (Ints& value : row) value = no_ints();
  const auto add = [&](auto read, std::int64_t k) {
    Weights weights[kRows];
    for (int r = 0; r < kRows; ++r) weights[r] = weights_of(read(w[r] + k));
    for (int t = 0; t < tokens; ++t) {
      const Bytes value = load_bytes(x[t] + k);  // zeros behind hidden
      for (int r = 0; r < kRows; ++r) sum[t][r] = dot(sum[t][r], weights[r], value);
    }
  };
  std::int64_t k = 0;
  for (; k + Bytes::size <= hidden; k += Bytes::size) {
    next(w[0] + kRows * k);
    add([](const void* p) { return load_bytes(p); }, k);
  }
  if (k < hidden) add([=](const void* p) { return load_bytes_part(p, hidden - k); }, k);
  for (int t = 0; t < tokens; ++t) store_sums(sums[t], sum[t][0], sum[t][1], sum[t][2], sum[t][3]);
}

inline std::int32_t minus(std::int32_t a, std::int32_t b) {  // modulo 2^32
  return static_cast<std::int32_t>(static_cast<std::uint32_t>(a) - static_cast<std::uint32_t>(b));
}

template <int tokens, class Next>
inline void project_some(const Projection8& p, std::int64_t first, std::int64_t row, const Next& next) {
  const std::int64_t rows = p.rows - row < kRows ? p.rows - row : kRows;
  const std::uint8_t* w[kRows];
  float scale[kRows], bias[kRows];
  for (int r = 0; r < kRows; ++r) {
    const std::int64_t at = row + (r < rows ? r : rows - 1);
    w[r] = p.weights + at * p.hidden;
    scale[r] = p.scale[at];
    bias[r] = p.bias ? p.bias[at] : 0.0f;
  }
  std::int64_t token[tokens];
  const std::int8_t* x[tokens];
  for (int t = 0; t < tokens; ++t) {
    token[t] = p.tokens ? p.tokens[first + t] : first + t;
    x[t] = p.x.values + token[t] * p.x.stride;
  }
  std::int32_t sums[tokens][kRows];
  project_tile<tokens>(x, w, p.hidden, sums, next);
  for (int t = 0; t < tokens; ++t) {
    float values[kRows];
    for (int r = 0; r < kRows; ++r)
      values[r] = static_cast<float>(minus(sums[t][r], p.x.shift[token[t]])) * (p.x.step[token[t]] * scale[r]) + bias[r];
    float* h = p.h + (first + t) * p.h_stride + row;
    if (rows == kRows)
      std::memcpy(h, values, sizeof values);
    else
      std::memcpy(h, values, static_cast<std::size_t>(rows) * sizeof(float));
  }
}

template <int tokens, class Next>
inline void project_up_to(std::int64_t count, const Projection8& p, std::int64_t first, const Next& next) {
  if constexpr (tokens > 1) {
    if (count < tokens) return project_up_to<tokens - 1>(count, p, first, next);
  }
  for (std::int64_t row = 0; row < p.rows; row += kRows) project_some<tokens>(p, first, row, next);
}

void project(const Projection8& p) {
  if (p.count <= kFew) {
    const Stream stream{reinterpret_cast<const char*>(p.weights + p.rows * p.hidden), p.ahead};
    const auto next = [&](const std::uint8_t* at) { stream.ask(at, kRows * Bytes::size); };
    return project_up_to<kFew>(p.count, p, 0, next);
  }
  const std::int64_t tiles = ceil_div(p.count, kTokens);
  Steps steps(p.ahead, tiles * ceil_div(p.rows, kRows) * (p.hidden / Bytes::size));
  const auto several = [&](const std::uint8_t*) { steps.next<kLines>(); };
  const auto one = [&](const std::uint8_t*) { steps.next<1>(); };
  each_tile(p.count, tiles, [&](std::int64_t first, std::int64_t count) {
    steps.several() ? project_up_to<kTokens>(count, p, first, several) : project_up_to<kTokens>(count, p, first, one);
  });
}
