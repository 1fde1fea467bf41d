// The activations of moeify/ir/activations.py on vectors. Included once an instruction set, after its vector header and
// inside its namespace. Relative error below 1e-6 wherever the result is a normal number: what goes into an exponential
// is carried as a sum of two floats, since an absolute error there is a relative one of the result.
//
// The polynomials are minimax fits, made for this file by reweighted least squares on Chebyshev nodes.

inline Vec negate(Vec a) { return zero() - a; }

// c[0] x^(n-1) + ... + c[n-1]
template <int n>
inline Vec polynomial(Vec x, const float (&c)[n]) {
  Vec sum = splat(c[0]);
  for (int i = 1; i < n; ++i) sum = fma(sum, x, splat(c[i]));
  return sum;
}

// x = n ln 2 + rest, |rest| <= ln 2 / 2; ln 2 in two parts, of which the first has few bits.
inline Vec split_power(Vec x, Vec& rest) {
  const Vec n = nearest(x * splat(1.44269504f));
  rest = fma(n, splat(2.12194440e-4f), fma(n, splat(-0.693359375f), x));
  return n;
}

// exp(x + low)
inline Vec exponential(Vec x, Vec low) {
  static constexpr float c[] = {1.383674190e-03f, 8.374898363e-03f, 4.166823180e-02f, 1.666641919e-01f,
                                4.999999203e-01f, 1.000000037e+00f, 1.000000001e+00f};
  Vec rest;
  const Vec n = split_power(at_most(at_least(x, -110.0f), 89.0f), rest);
  return times_power(polynomial(rest + low, c), n);
}
inline Vec exponential(Vec x) { return exponential(x, zero()); }

// exp(x) - 1 for x <= 0
inline Vec exponential_less_one(Vec x) {
  static constexpr float c[] = {1.985783259e-04f, 1.393368709e-03f, 8.333360824e-03f,
                                4.166646472e-02f, 1.666666653e-01f, 5.000000013e-01f};
  Vec rest;
  const Vec n = split_power(at_least(x, -110.0f), rest);
  const Vec power = times_power(splat(1.0f), n);
  return fma(power, fma(rest * rest, polynomial(rest, c), rest), power - splat(1.0f));
}

// log(1 + t) for 0 <= t <= 1
inline Vec log_one_plus(Vec t) {
  static constexpr float c[] = {7.332536243e-02f, -1.165993216e-01f, 1.163466133e-01f, -1.239669997e-01f, 1.425115570e-01f,
                                -1.666915103e-01f, 2.000068809e-01f, -2.499998119e-01f, 3.333333126e-01f};
  const Mask large = t > splat(0.41421357f);
  const Vec s = choose(large, (t - splat(1.0f)) * splat(0.5f), t);
  const Vec log = fma(s * s, fma(s, polynomial(s, c), splat(-0.5f)), s);
  return choose(large, log + splat(0.693147181f), log);
}

// 1 / (1 + exp(-(x + low)))
inline Vec logistic(Vec x, Vec low) {
  const Mask negative = x < zero();
  const Vec t = exponential(negate(absolute(x)), choose(negative, low, negate(low)));
  const Vec s = splat(1.0f) / (splat(1.0f) + t);
  return choose(negative, t * s, s);
}

inline Vec identity(Vec x) { return x; }
inline Vec relu(Vec x) { return at_least(x, 0.0f); }
inline Vec relu6(Vec x) { return at_most(relu(x), 6.0f); }
inline Vec relu_squared(Vec x) { return relu(x) * relu(x); }
inline Vec leaky(Vec x, float slope) { return choose(x > zero(), x, x * splat(slope)); }
inline Vec leaky_relu(Vec x) { return leaky(x, 0.01f); }
inline Vec leaky_relu_wide(Vec x) { return leaky(x, 0.1f); }
inline Vec leaky_relu_squared(Vec x) { return leaky(x, 0.5f) * leaky(x, 0.5f); }

// x Phi(x). Phi(-a) = exp(-a^2 / 2) p(q) / (1 + a), q = (a - 4) / (a + 4), keeps its digits in the tail.
inline Vec gelu(Vec x) {
  static constexpr float c[] = {-7.117279772e-05f, -5.937178443e-05f, 6.936753797e-04f,  -3.040924157e-04f,
                                -5.004898403e-03f, 1.794015704e-02f,  -3.219718215e-02f, 2.859999611e-02f,
                                1.399959164e-02f,  -9.670346757e-02f, 4.720532069e-01f};
  const Vec a = at_most(absolute(x), 60.0f), square = a * a, low = product_error(a, a, square);
  const Vec p = polynomial((a - splat(4.0f)) / (a + splat(4.0f)), c) / (splat(1.0f) + a);
  const Vec tail = exponential(square * splat(-0.5f), low * splat(-0.5f)) * p;
  return x * choose(x < zero(), tail, splat(1.0f) - tail);
}

// x / (1 + exp(-u)), u = x (c0 + c1 x^2) = 2 sqrt(2 / pi) (x + 0.044715 x^3)
inline Vec gelu_tanh(Vec x) {
  const Vec c0 = splat(1.5957692f), c0_low = splat(-4.53406803e-8f), c1 = splat(0.071354814f), c1_low = splat(2.39883240e-9f);
  const Vec a = at_most(at_least(x, -30.0f), 30.0f), square = a * a, cubic = c1 * square;
  const Vec cubic_low = fma(c1_low, square, fma(c1, product_error(a, a, square), product_error(c1, square, cubic)));
  const Vec sum = c0 + cubic, moved = sum - c0, lost = (c0 - (sum - moved)) + (cubic - moved);
  const Vec u = a * sum, low = fma(a, lost + (cubic_low + c0_low), product_error(a, sum, u));
  return x * logistic(u, low);
}

inline Vec quick_gelu(Vec x) {
  const Vec a = at_most(at_least(x, -80.0f), 80.0f), c = splat(1.702f), u = a * c;
  return x * logistic(u, fma(a, splat(-2.19345093e-8f), product_error(a, c, u)));
}

inline Vec sigmoid(Vec x) { return logistic(x, zero()); }
inline Vec silu(Vec x) { return x * sigmoid(x); }

// x tanh(log(1 + exp(x))) = x n / (n + 2), n = exp(x) (exp(x) + 2); for x >= 0 by powers of exp(-x)
inline Vec mish(Vec x) {
  const Vec t = exponential(negate(absolute(x))), one = splat(1.0f), two = splat(2.0f);
  const Vec below = t * (t + two), above = fma(two, t, one);
  const Mask negative = x < zero();
  const Vec n = choose(negative, below, above);
  return x * n / (n + choose(negative, two, two * t * t));
}

inline Vec elu(Vec x) { return choose(x > zero(), x, exponential_less_one(at_most(x, 0.0f))); }
inline Vec selu(Vec x) {
  return choose(x > zero(), x * splat(1.05070099f), exponential_less_one(at_most(x, 0.0f)) * splat(1.75809934f));
}
inline Vec softplus(Vec x) { return at_least(x, 0.0f) + log_one_plus(exponential(negate(absolute(x)))); }
inline Vec softsign(Vec x) { return x / (splat(1.0f) + absolute(x)); }

inline Vec tanh_(Vec x) {
  static constexpr float c[] = {2.299137212e-03f, -8.350217572e-03f, 2.177107721e-02f,
                                -5.395956412e-02f, 1.333330508e-01f, -3.333333319e-01f};
  const Vec a = absolute(x), square = x * x, one = splat(1.0f);
  const Vec large = one - splat(2.0f) / (exponential(a + a) + one);
  const Vec small = fma(x * square, polynomial(square, c), x);
  return choose(a < splat(0.625f), small, choose(x < zero(), negate(large), large));
}

inline Vec hard_sigmoid(Vec x) { return at_most(at_least(x + splat(3.0f), 0.0f), 6.0f) * splat(1.0f / 6.0f); }
inline Vec hard_swish(Vec x) { return x * hard_sigmoid(x); }
