// The maths of every op, once: per-element templates on a traits type S. No include, no loop, no memory: the CPU compiles this
// text with S = Simd<T> (vectors), CUDA with scalar traits. The includer defines RHEME_FN (storage class and inlining).
//
// S::V value, S::I its integer twin and the type of comparisons, S::set, S::fma, S::select, S::min, S::max, S::abs, S::exp,
// S::log, S::tanh, S::sigmoid, S::sqrt; for float also S::to_int, S::to_float, S::bits_to_float, S::float_to_bits.
#pragma once

// p 2^n, n a whole number: two factors of 2^(n/2) make results below 2^-126 come out rounded once and not flushed. For those
// who have no instruction for it.
template <class S>
RHEME_FN typename S::V scale_f32(typename S::V p, typename S::V n) {
  typedef typename S::I I;
  const I power = S::to_int(n);
  const I half = power >> 1;
  return p * S::bits_to_float((half + 127) << 23) * S::bits_to_float((power - half + 127) << 23);
}

// exp: x = n ln2 + r, |r| <= ln2/2, ln2 in two parts (Cody and Waite), then 1 + r + r^2 Q(r) with Q a minimax fit of relative
// error 3.1e-9 on that interval. What is not a number passes both bounds, as no comparison with it holds.
template <class S>
RHEME_FN typename S::V exp_f32(typename S::V x) {
  typedef typename S::V V;
  const V clamped = S::min(S::set(89.0f), S::max(S::set(-104.0f), x));
  const V magic = S::set(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  const V shifted = S::fma(clamped, S::set(1.44269504f), magic);
  const V n = shifted - magic;
  V r = S::fma(n, S::set(-0.693145752f), clamped);
  r = S::fma(n, S::set(-1.428606765e-06f), r);
  V q = S::set(0.00139506022f);
  q = S::fma(q, r, S::set(0.00836895313f));
  q = S::fma(q, r, S::set(0.041666206f));
  q = S::fma(q, r, S::set(0.166665182f));
  q = S::fma(q, r, S::set(0.5f));
  return S::scale(S::fma(r * r, q, r) + S::set(1.0f), n);
}

// log: x = m 2^e with m in [sqrt(1/2), sqrt(2)), f = m - 1, log(1 + f) = f - f^2/2 + f^3 P(f), P a minimax fit of relative
// error 5.8e-9. Denormal arguments are scaled up first.
template <class S>
RHEME_FN typename S::V log_f32(typename S::V x) {
  typedef typename S::V V;
  typedef typename S::I I;
  const I tiny = x < S::set(1.17549435e-38f);
  const V scaled = S::select(tiny, x * S::set(8388608.0f), x);
  const I bits = S::float_to_bits(scaled);
  const I offset = bits - 0x3f3504f3;  // sqrt(1/2)
  const I exponent = offset >> 23;
  const V m = S::bits_to_float((offset & 0x007fffff) + 0x3f3504f3);
  const V e = S::to_float(exponent) - S::select(tiny, S::set(23.0f), S::set(0.0f));
  const V f = m - S::set(1.0f);
  V p = S::set(-0.0763449296f);
  p = S::fma(p, f, S::set(0.12761575f));
  p = S::fma(p, f, S::set(-0.131601825f));
  p = S::fma(p, f, S::set(0.142017588f));
  p = S::fma(p, f, S::set(-0.166233569f));
  p = S::fma(p, f, S::set(0.200012267f));
  p = S::fma(p, f, S::set(-0.250008196f));
  p = S::fma(p, f, S::set(0.333333313f));
  const V f2 = f * f;
  V y = S::fma(e, S::set(1.428606765e-06f), f2 * f * p);
  y = S::fma(f2, S::set(-0.5f), y);
  y = y + f;
  y = S::fma(e, S::set(0.693145752f), y);
  const V infinity = S::set(__builtin_inff());
  y = S::select(x == infinity, infinity, y);
  y = S::select(x == S::set(0.0f), -infinity, y);
  return S::select(x >= S::set(0.0f), y, S::set(__builtin_nanf("")));
}

// tanh: x + x^3 P(x^2) below 0.625 (minimax, relative error 4.1e-9), 1 - 2 / (exp(2|x|) + 1) with the sign of x above.
template <class S>
RHEME_FN typename S::V tanh_f32(typename S::V x) {
  typedef typename S::V V;
  typedef typename S::I I;
  const I bits = S::float_to_bits(x), positive = bits & 0x7fffffff;
  const V a = S::bits_to_float(positive);
  const V u = x * x;
  V p = S::set(-0.0057170447f);
  p = S::fma(p, u, S::set(0.0206505861f));
  p = S::fma(p, u, S::set(-0.0537434965f));
  p = S::fma(p, u, S::set(0.133314908f));
  p = S::fma(p, u, S::set(-0.333332837f));
  const V small = S::fma(u * x, p, x);
  const V large = S::set(1.0f) - S::set(2.0f) / (exp_f32<S>(a + a) + S::set(1.0f));
  const V signed_large = S::bits_to_float(S::float_to_bits(large) | (bits ^ positive));
  return S::select(a < S::set(0.625f), small, signed_large);
}

template <class S>
RHEME_FN typename S::V sigmoid_any(typename S::V x) {
  return S::set(1) / (S::set(1) + S::exp(-x));
}

// LSTM, one unit, in two halves. In: pre-activations of the gates i f g o and the previous cell; out: gates and cell; then
// hidden. Source: Hochreiter and Schmidhuber 1997 with the forget gate of Gers et al. 2000.
template <class S>
RHEME_FN void lstm_cell_state(typename S::V& i, typename S::V& f, typename S::V& g, typename S::V& o, typename S::V& cell) {
  i = S::sigmoid(i);
  f = S::sigmoid(f);
  g = S::tanh(g);
  o = S::sigmoid(o);
  cell = S::fma(f, cell, i * g);
}
template <class S>
RHEME_FN typename S::V lstm_hidden(typename S::V o, typename S::V cell) {
  return o * S::tanh(cell);
}
template <class S>
RHEME_FN void lstm_cell(typename S::V& i, typename S::V& f, typename S::V& g, typename S::V& o, typename S::V& cell,
                        typename S::V& hidden) {
  lstm_cell_state<S>(i, f, g, o, cell);
  hidden = lstm_hidden<S>(o, cell);
}

// In: gates and cell of the step, the cell before it, dhidden, and dcell from the step after. Out: gradients of the four
// pre-activations in place of the gates, and dcell of the step before.
template <class S>
RHEME_FN void lstm_cell_backward(typename S::V& i, typename S::V& f, typename S::V& g, typename S::V& o, typename S::V cell,
                                 typename S::V previous_cell, typename S::V dhidden, typename S::V& dcell) {
  typedef typename S::V V;
  const V one = S::set(1);
  const V t = S::tanh(cell);
  const V dc = S::fma(dhidden * o, S::fma(-t, t, one), dcell);
  const V d_o = dhidden * t * o * (one - o);
  const V d_i = dc * g * i * (one - i);
  const V d_f = dc * previous_cell * f * (one - f);
  const V d_g = dc * i * S::fma(-g, g, one);
  dcell = dc * f;
  i = d_i;
  f = d_f;
  g = d_g;
  o = d_o;
}

// sin and cos for |x| <= pi / 4, minimax in x^2 (Cephes).
template <class S>
RHEME_FN typename S::V sin_f32(typename S::V x) {
  const typename S::V u = x * x;
  typename S::V p = S::fma(S::set(-1.9515296e-4f), u, S::set(8.3321609e-3f));
  p = S::fma(p, u, S::set(-1.6666655e-1f));
  return S::fma(u * x, p, x);
}
template <class S>
RHEME_FN typename S::V cos_f32(typename S::V x) {
  const typename S::V u = x * x;
  typename S::V p = S::fma(S::set(2.4433157e-5f), u, S::set(-1.3887316e-3f));
  p = S::fma(p, u, S::set(4.1666646e-2f));
  return S::fma(u * u, p, S::fma(u, S::set(-0.5f), S::set(1.0f)));
}

// Two standard normals of two integers below 2^bits, held as floating point (Box and Muller 1958): the first, plus one, is the
// radius' uniform, in (0, 1], the second the angle in turns, in [0, 1).
template <class S>
RHEME_FN void box_muller(typename S::V& a, typename S::V& b, double unit) {
  typedef typename S::V V;
  typedef typename S::Scalar T;
  const V scale = S::set(T(unit));
  const V radius = S::sqrt(S::set(T(-2)) * S::log((a + S::set(T(1))) * scale));
  const V turns = b * scale;
  const V magic = S::set(sizeof(T) == 4 ? T(12582912.0) : T(6755399441055744.0));  // adding it rounds to an integer
  const V quarter = (turns * S::set(T(4)) + magic) - magic;                        // 0 .. 4
  const V angle = S::fma(quarter, S::set(T(-0.25)), turns) * S::set(T(6.283185307179586));
  const V s = S::sin_small(angle), c = S::cos_small(angle);
  const typename S::I one = quarter == S::set(T(1)), two = quarter == S::set(T(2)), three = quarter == S::set(T(3));
  const V cosine = S::select(one, -s, S::select(two, -c, S::select(three, s, c)));
  const V sine = S::select(one, c, S::select(two, -s, S::select(three, -c, s)));
  a = radius * cosine;
  b = radius * sine;
}

// Philox4x32-10 (Salmon et al. 2011): the counter becomes the random words.
RHEME_FN void philox4x32_10(uint32_t& c0, uint32_t& c1, uint32_t& c2, uint32_t& c3, uint32_t k0, uint32_t k1) {
#pragma GCC unroll 10
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t(0xD2511F53u) * c0, p1 = uint64_t(0xCD9E8D57u) * c2;
    c0 = uint32_t(p1 >> 32) ^ c1 ^ k0;
    c1 = uint32_t(p1);
    c2 = uint32_t(p0 >> 32) ^ c3 ^ k1;
    c3 = uint32_t(p0);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
}

// e^x - 1 - x given e^x: near 0, where the difference cancels, by its Taylor series.
template <class S>
RHEME_FN typename S::V exp_excess(typename S::V x, typename S::V exp_x) {
  typedef typename S::V V;
  typedef typename S::Scalar T;
  V q = S::set(T(1.0 / 39916800));  // 1 / 11!
  if (sizeof(T) == 8) {
    q = S::set(T(1.0 / 6402373705728000));  // 1 / 18!
    q = S::fma(q, x, S::set(T(1.0 / 355687428096000)));
    q = S::fma(q, x, S::set(T(1.0 / 20922789888000)));
    q = S::fma(q, x, S::set(T(1.0 / 1307674368000)));
    q = S::fma(q, x, S::set(T(1.0 / 87178291200)));
    q = S::fma(q, x, S::set(T(1.0 / 6227020800)));
    q = S::fma(q, x, S::set(T(1.0 / 479001600)));
    q = S::fma(q, x, S::set(T(1.0 / 39916800)));
  }
  q = S::fma(q, x, S::set(T(1.0 / 3628800)));
  q = S::fma(q, x, S::set(T(1.0 / 362880)));
  q = S::fma(q, x, S::set(T(1.0 / 40320)));
  q = S::fma(q, x, S::set(T(1.0 / 5040)));
  q = S::fma(q, x, S::set(T(1.0 / 720)));
  q = S::fma(q, x, S::set(T(1.0 / 120)));
  q = S::fma(q, x, S::set(T(1.0 / 24)));
  q = S::fma(q, x, S::set(T(1.0 / 6)));
  q = S::fma(q, x, S::set(T(0.5)));
  return S::select(S::abs(x) < S::set(T(1)), x * x * q, exp_x - S::set(T(1)) - x);
}

// z = mu + sigma eps, and KL(N(mu, sigma^2) || N(0, 1)) = (mu^2 + e^logvar - 1 - logvar) / 2, sigma = e^(logvar / 2).
template <class S>
RHEME_FN typename S::V gaussian_divergence(typename S::V mu, typename S::V logvar, typename S::V sigma) {
  return S::set(0.5f) * S::fma(mu, mu, exp_excess<S>(logvar, sigma * sigma));
}
template <class S>
RHEME_FN typename S::V gaussian_sigma(typename S::V logvar) {
  return S::exp(S::set(0.5f) * logvar);
}
template <class S>
RHEME_FN void gaussian_gradient(typename S::V dz, typename S::V dkl, typename S::V mu, typename S::V logvar, typename S::V eps,
                                typename S::V sigma, typename S::V& dmu, typename S::V& dlogvar) {
  dmu = S::fma(dkl, mu, dz);
  const typename S::V slope = exp_excess<S>(logvar, sigma * sigma) + logvar;  // e^logvar - 1
  dlogvar = S::set(0.5f) * S::fma(dz * eps, sigma, dkl * slope);
}

// AdamW (Loshchilov and Hutter 2019) with the bias corrections where PyTorch puts them. A is AdamwArgs.
template <class S, class A>
RHEME_FN void adamw_update(const A& a, typename S::V grad, typename S::V& param, typename S::V& m, typename S::V& v) {
  typedef typename S::V V;
  const V g = grad * S::set(a.grad_scale);
  m = S::fma(S::set(a.beta1), m, S::set(a.one_minus_beta1) * g);
  v = S::fma(S::set(a.beta2), v, S::set(a.one_minus_beta2) * g * g);
  const V denominator = S::fma(S::sqrt(v), S::set(a.root_correction), S::set(a.epsilon));
  param = S::fma(S::set(-a.step_size), m / denominator, param * S::set(a.decay));
}
