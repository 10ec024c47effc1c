// The maths of every op, once: per-element templates on a traits type S. No include, no loop, no memory: the CPU compiles this
// text with S = Simd<T> (vectors), CUDA with scalar traits. The includer defines RHEME_FN (storage class and inlining).
//
// S::V value, S::I its integer twin and the type of comparisons, S::set, S::fma, S::select, S::min, S::max, S::abs, S::exp,
// S::log, S::tanh, S::sigmoid, S::sqrt; for float also S::to_int, S::to_float, S::bits_to_float, S::float_to_bits.
#pragma once

// exp: x = n ln2 + r, |r| <= ln2/2, ln2 in two parts (Cody and Waite), then 1 + r + r^2 Q(r) with Q a minimax fit of relative
// error 3.1e-9 on that interval. Two factors of 2^(n/2) make results below 2^-126 come out rounded once and not flushed.
template <class S>
RHEME_FN typename S::V exp_f32(typename S::V x) {
  typedef typename S::V V;
  typedef typename S::I I;
  const V clamped = S::min(S::max(x, S::set(-104.0f)), S::set(89.0f));
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
  const V p = S::fma(r * r, q, r) + S::set(1.0f);
  const I power = S::to_int(n);
  const I half = power >> 1;
  const V y = p * S::bits_to_float((half + 127) << 23) * S::bits_to_float((power - half + 127) << 23);
  return S::select(x == x, y, x);
}

// log: x = m 2^e with m in [sqrt(1/2), sqrt(2)), f = m - 1, log(1 + f) = f - f^2/2 + f^3 P(f), P a minimax fit of relative error
// 5.8e-9. Denormal arguments are scaled up first.
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
  const V a = S::abs(x);
  const V u = x * x;
  V p = S::set(-0.0057170447f);
  p = S::fma(p, u, S::set(0.0206505861f));
  p = S::fma(p, u, S::set(-0.0537434965f));
  p = S::fma(p, u, S::set(0.133314908f));
  p = S::fma(p, u, S::set(-0.333332837f));
  const V small = S::fma(u * x, p, x);
  const V large = S::set(1.0f) - S::set(2.0f) / (exp_f32<S>(a + a) + S::set(1.0f));
  const V signed_large = S::select(x < S::set(0.0f), -large, large);
  const V y = S::select(a < S::set(0.625f), small, signed_large);
  return S::select(x == x, y, x);
}

template <class S>
RHEME_FN typename S::V sigmoid_any(typename S::V x) {
  return S::set(1) / (S::set(1) + S::exp(-x));
}

// LSTM, one unit. In: pre-activations of the gates i f g o and the previous cell; out: gates, cell, hidden.
// Source: Hochreiter and Schmidhuber 1997 with the forget gate of Gers et al. 2000.
template <class S>
RHEME_FN void lstm_cell(typename S::V& i, typename S::V& f, typename S::V& g, typename S::V& o, typename S::V& cell,
                        typename S::V& hidden) {
  i = S::sigmoid(i);
  f = S::sigmoid(f);
  g = S::tanh(g);
  o = S::sigmoid(o);
  cell = S::fma(f, cell, i * g);
  hidden = o * S::tanh(cell);
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
