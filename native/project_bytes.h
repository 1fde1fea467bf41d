// x times the weights of neurons, both bytes. Included as tiles.h is.

constexpr int kRows = 4;                  // of a tile, for few tokens
constexpr int kFew = 4;                   // tokens whose sums registers hold while weights are streamed
constexpr int kStreamed = 20;             // tokens for which memory sets the pace
constexpr std::int64_t kNear = 24 << 10;  // bytes of x that stay in the first cache

inline std::int64_t token_of(const Projection8& p, std::int64_t t) { return p.tokens ? p.tokens[t] : t; }

// The integers of a token on some rows => its h there.
template <int rows>
inline void finish_rows(const Projection8& p, std::int64_t t, std::int64_t row, const std::int32_t (&sums)[rows],
                        const float (&scale)[rows], const float (&bias)[rows]) {
  const float step = p.x.step[token_of(p, t)];
  float values[rows];
  for (int r = 0; r < rows; ++r) values[r] = static_cast<float>(sums[r]) * (step * scale[r]) + bias[r];
  float* h = p.h + t * p.h_stride + row;
  if (p.rows - row >= rows)
    std::memcpy(h, values, sizeof values);
  else
    std::memcpy(h, values, static_cast<std::size_t>(p.rows - row) * sizeof(float));
}

// Rows from `row` on with what belongs to them; behind the last row it comes again.
template <int rows>
struct Neurons {
  const std::uint8_t* w[rows];
  float scale[rows], bias[rows];

  Neurons(const Projection8& p, std::int64_t row) {
    for (int r = 0; r < rows; ++r) {
      const std::int64_t at = row + r < p.rows ? row + r : p.rows - 1;
      w[r] = p.weights + at * p.hidden;
      scale[r] = p.scale[at];
      bias[r] = p.bias ? p.bias[at] : 0.0f;
    }
  }
};

// For so few tokens that memory sets the pace: four rows at a time as they lie, the sums of each added across a register. For tokens
// behind the first kFew they come from the cache; each part of the tokens asks for its part of what is ahead.
template <int tokens>
inline void stream_rows(const Projection8& p, const Neurons<kRows>& neurons, std::int64_t first, std::int64_t row,
                        const Stream& ahead, int part, int parts) {
  const std::int8_t* x[tokens];
  Ints sum[tokens][kRows];
  for (int t = 0; t < tokens; ++t) {
    x[t] = p.x.values + token_of(p, first + t) * p.x.stride;
    for (Ints& value : sum[t]) value = splat_int(0);
  }
  const auto add = [&](auto read, std::int64_t k) {
    Weights weights[kRows];
    for (int r = 0; r < kRows; ++r) weights[r] = weights_of(read(neurons.w[r] + k));
    for (int t = 0; t < tokens; ++t) {
      const Bytes value = load_bytes(x[t] + k);  // zeros behind hidden
      for (int r = 0; r < kRows; ++r) sum[t][r] = dot(sum[t][r], weights[r], value);
    }
  };
  std::int64_t k = 0;
  for (; k + Bytes::size <= p.hidden; k += Bytes::size) {
    ahead.ask(neurons.w[0] + kRows * k, kRows * Bytes::size, part, parts);
    add([](const void* from) { return load_bytes(from); }, k);
  }
  if (k < p.hidden) add([&](const void* from) { return load_bytes_part(from, p.hidden - k); }, k);
  // A loop of its own, so small that the compiler writes it out: else it keeps all sums in memory.
  std::int32_t sums[tokens][kRows];
  for (int t = 0; t < tokens; ++t) store_sums(sums[t], sum[t][0], sum[t][1], sum[t][2], sum[t][3]);
  for (int t = 0; t < tokens; ++t) {
    for (std::int32_t& value : sums[t]) value = minus(value, p.x.shift[token_of(p, first + t)]);
    finish_rows(p, first + t, row, sums[t], neurons.scale, neurons.bias);
  }
}

template <int tokens>
inline void stream_up_to(std::int64_t count, const Projection8& p, const Neurons<kRows>& neurons, std::int64_t first,
                         std::int64_t row, const Stream& ahead, int part, int parts) {
  if constexpr (tokens > 1) {
    if (count < tokens) return stream_up_to<tokens - 1>(count, p, neurons, first, row, ahead, part, parts);
  }
  stream_rows<tokens>(p, neurons, first, row, ahead, part, parts);
}

inline void stream(const Projection8& p, const Stream& ahead) {
  const int tiles = static_cast<int>(ceil_div(p.count, kFew));
  for (std::int64_t row = 0; row < p.rows; row += kRows) {
    const Neurons<kRows> neurons(p, row);
    int part = 0;
    each_tile(p.count, tiles, [&](std::int64_t first, std::int64_t count) {
      stream_up_to<kFew>(count, p, neurons, first, row, ahead, part++, tiles);
    });
  }
}

// A register of rows as a panel: the quads of a register of columns change places with the rows.
inline void weave(const Projection8& p, const Neurons<kLanes>& neurons, std::uint8_t* panel) {
  for (std::int64_t k = 0; k < p.hidden; k += Bytes::size) {
    Bytes quads[kLanes];
    for (int r = 0; r < kLanes; ++r)
      quads[r] = k + Bytes::size <= p.hidden ? load_bytes(neurons.w[r] + k) : load_bytes_part(neurons.w[r] + k, p.hidden - k);
    transpose(quads);
    for (int r = 0; r < kLanes; ++r, panel += Bytes::size) store_bytes(panel, quads[r]);
  }
}

template <int tokens, int lines>
inline void project_up_to(std::int64_t count, const Projection8& p, const std::uint8_t* panel, const Neurons<kLanes>& neurons,
                          std::int64_t first, std::int64_t row, Steps& steps) {
  if constexpr (tokens > 1) {
    if (count < tokens) return project_up_to<tokens - 1, lines>(count, p, panel, neurons, first, row, steps);
  }
  const std::int8_t* x[tokens];
  Ints sum[tokens][1];
  for (int t = 0; t < tokens; ++t) {
    const std::int64_t token = token_of(p, first + t);
    x[t] = p.x.values + token * p.x.stride;
    sum[t][0] = start_of(p.x, token);
  }
  panel_tile<tokens, 1, lines>(panel, ceil_div(p.hidden, Bytes::size) * kLanes, x, sum, steps);
  for (int t = 0; t < tokens; ++t) {
    std::int32_t sums[kLanes];
    store_ints(sums, sum[t][0]);
    finish_rows(p, first + t, row, sums, neurons.scale, neurons.bias);
  }
}

void project(const Projection8& p) {
  if (p.count <= kFew || (p.count <= kStreamed && p.count * p.hidden <= kNear))
    return stream(p, {reinterpret_cast<const char*>(p.weights + p.rows * p.hidden), p.ahead});
  const std::int64_t tiles = ceil_div(p.count, kTokensOfOne), registers = ceil_div(p.hidden, Bytes::size);
  std::uint8_t* panel = room_of(*p.room, registers * kLanes * Bytes::size);
  Steps steps(p.ahead, tiles * ceil_div(p.rows, kLanes) * registers * kLanes / 4);
  for (std::int64_t row = 0; row < p.rows; row += kLanes) {
    const Neurons<kLanes> neurons(p, row);
    weave(p, neurons, panel);
    each_tile(p.count, tiles, [&](std::int64_t first, std::int64_t count) {
      if (steps.several())
        project_up_to<kTokensOfOne, kLines>(count, p, panel, neurons, first, row, steps);
      else
        project_up_to<kTokensOfOne, 1>(count, p, panel, neurons, first, row, steps);
    });
  }
}
