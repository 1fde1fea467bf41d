// Floats => bytes, and the small loops around integers; the compiler makes vectors of them. Included once an instruction set.

// A row of which no value is larger counts as zeros: 127 divided by it would not be a float.
constexpr float kSmallest = 1e-36f;

// Of the largest absolute value its bits; those of what is not finite are larger than all others.
inline std::uint32_t largest_bits(const float* values, std::int64_t n) {
  std::int32_t largest = 0;
  for (std::int64_t i = 0; i < n; ++i) {
    const auto bits = static_cast<std::int32_t>(to_bits(values[i]) & 0x7fffffffu);
    largest = bits > largest ? bits : largest;
  }
  return static_cast<std::uint32_t>(largest);
}

void round(const float* values, std::int64_t width, Bytes8 to, std::int64_t t) {
  const std::uint32_t bits = largest_bits(values, width);
  const float largest = from_bits(bits);
  std::int8_t* out = to.values + t * to.stride;
  std::int64_t sum = 0;
  if (bits < 0x7f800000u && largest > kSmallest) {
    const float inverse = 127.0f / largest, magic = 12582912.0f;  // 1.5 2^23: the sum has no bits left for a fraction
    std::int32_t sums = 0;
    for (std::int64_t i = 0; i < width; ++i) {
      const auto whole = static_cast<std::int32_t>(to_bits(values[i] * inverse + magic) - 0x4b400000u);
      out[i] = static_cast<std::int8_t>(whole);
      sums += whole;
    }
    sum = sums;
    std::memset(out + width, 0, static_cast<std::size_t>(to.stride - width));
    to.step[t] = largest / 127.0f;
  } else {
    std::memset(out, 0, static_cast<std::size_t>(to.stride));
    to.step[t] = bits < 0x7f800000u ? 0.0f : from_bits(0x7fc00000u);
  }
  to.shift[t] = kShifted ? static_cast<std::int32_t>(sum * 128) : 0;
}

void scale(float* values, const float* factors, std::int64_t n) {
  for (std::int64_t i = 0; i < n; ++i) values[i] *= factors[i];
}

void restore(const std::uint8_t* from, const float* scale, std::int64_t n, float* to) {
  for (std::int64_t block = 0; block < n / kBlock; ++block, from += kBlock / 2, to += kBlock)
    for (int i = 0; i < kBlock / 2; ++i) {
      to[2 * i] = static_cast<float>((from[i] & 15) - 8) * scale[block];
      to[2 * i + 1] = static_cast<float>((from[i] >> 4) - 8) * scale[block];
    }
}
