// Panels: weights of one register of outputs or of four, interleaved so that the four bytes of an output meet the same four values
// of a token in every lane: [quads of values, registers]. Included as tiles.h is.

constexpr int kLanes = Bytes::size / 4;

inline std::int32_t minus(std::int32_t a, std::int32_t b) {  // modulo 2^32
  return static_cast<std::int32_t>(static_cast<std::uint32_t>(a) - static_cast<std::uint32_t>(b));
}

// What the sums of row t begin with.
inline Ints start_of(const Bytes8& rows, std::int64_t t) { return splat_int(minus(0, rows.shift[t])); }

// sum[t] += the panel times row t of values; `quads` is a multiple of 4 / registers.
template <int tokens, int registers, int lines>
inline void panel_tile(const std::uint8_t* panel, std::int64_t quads, const std::int8_t* const (&values)[tokens],
                       Ints (&sum)[tokens][registers], Steps& steps) {
  constexpr int together = 4 / registers;
  for (std::int64_t q = 0; q < quads; q += together) {
    steps.next<lines>();
    for (int i = 0; i < together; ++i, panel += registers * Bytes::size) {
      Weights weights[registers];
      for (int v = 0; v < registers; ++v) weights[v] = weights_of(load_bytes(panel + v * Bytes::size));
      for (int t = 0; t < tokens; ++t) {
        const Bytes value = splat_four(values[t] + 4 * (q + i));
        for (int v = 0; v < registers; ++v) sum[t][v] = dot(sum[t][v], weights[v], value);
      }
    }
  }
}

// From the start of a cache line.
inline std::uint8_t* room_of(std::vector<std::uint8_t>& room, std::int64_t bytes) {
  constexpr std::uintptr_t line = kLine;
  if (static_cast<std::int64_t>(room.size()) < bytes + kLine) room.resize(static_cast<std::size_t>(bytes + kLine));
  return room.data() + (line - reinterpret_cast<std::uintptr_t>(room.data()) % line) % line;
}
