// Parts of columns. Included as tiles.h is, after it.

constexpr std::int64_t kPart = 1024;  // columns at a time, so that the x or y of a tile stays in the first cache

// Columns [first, first + count).
struct Part {
  std::int64_t first, count;
};

template <class F>
inline void each_part(std::int64_t columns, F f) {
  const std::int64_t parts = ceil_div(columns, kPart), size = ceil_div(ceil_div(columns, parts), Vec::lanes) * Vec::lanes;
  for (std::int64_t first = 0; first < columns; first += size)
    f(Part{first, columns - first < size ? columns - first : size});
}
