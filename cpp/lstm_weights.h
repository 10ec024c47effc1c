// How the weights of an LSTM stand in panels, and the products of one row that read each weight once, where packing would cost
// more than it gains. Included by kernel files only; internal linkage throughout.
#pragma once

#include "gemm.h"

namespace rheme {
namespace RHEME_NS {
namespace {

constexpr long kUnits = 16;  // per panel

static inline long round_up(long n, long to) { return ceil_div(n, to) * to; }

// The row of PyTorch's (4H, K) weights that stands in column c of the panels, or -1 in the padding.
static inline long weight_row(long c, long hidden) {
  const long unit = c / kPanel * kUnits + c % kUnits, gate = c % kPanel / kUnits;
  return unit < hidden ? gate * hidden + unit : -1;
}

// Line i of a panel is column i of 64 rows of w: 16 neighbouring rows for each gate.
template <class T>
static void pack_gates_panel(const T* w, long k, long hidden, long p, long k0, long k1, T* out) {
  const long units = min_long(kUnits, hidden - p * kUnits);
  for (long gate = 0; gate < 4; ++gate)
    transpose_into(w + (gate * hidden + p * kUnits) * k + k0, k, k1 - k0, units, out + gate * kUnits, kPanel, kUnits);
}

template <class T>
static void pack_gates(const T* w, long k, long hidden, T* panels) {
  parallel(lstm_columns(hidden) / kPanel, [=](long p) { pack_gates_panel(w, k, hidden, p, 0, k, panels + p * k * kPanel); });
}

// The transposed use of the same weights: B(k = gate column, n = n) for dgates * W.
template <class T>
static void pack_gates_transposed(const T* w, long n, long hidden, T* panels) {
  const long columns = lstm_columns(hidden);
  parallel(ceil_div(n, kPanel), [=](long p) {
    const long first = p * kPanel, width = min_long(kPanel, n - first);
    T* out = panels + p * columns * kPanel;
    for (long c = 0; c < columns; ++c, out += kPanel) {
      const long row = weight_row(c, hidden);
      copy_line<T>(row >= 0 ? w + row * n + first : nullptr, width, out);
    }
  });
}

// 64 pre-activations += W x, W (4H, K), in the order of sums of the packed product; W is turned in the L1 cache on its way.
template <class T>
static void add_product_once(const T* w, long k, long hidden, long p, const T* x, T* gates) {
  typedef Simd<T> S;
  typedef typename S::V V;
  constexpr long N = kPanel / S::W, kLines = 16;
  alignas(64) T lines[kLines * kPanel];
  for (long k0 = 0; k0 < k; k0 += kBlock) {
    V acc[N];
#pragma GCC unroll 16
    for (long j = 0; j < N; ++j) acc[j] = S::set(T(0));
    for (long i0 = k0; i0 < min_long(k, k0 + kBlock); i0 += kLines) {
      const long i1 = min_long(k, i0 + kLines);
      pack_gates_panel(w, k, hidden, p, i0, i1, lines);
      for (long i = i0; i < i1; ++i) {
        const V factor = S::set(x[i]);
#pragma GCC unroll 16
        for (long j = 0; j < N; ++j) acc[j] = S::fma(factor, S::load(lines + (i - i0) * kPanel + j * S::W), acc[j]);
      }
    }
#pragma GCC unroll 16
    for (long j = 0; j < N; ++j) S::store(gates + j * S::W, S::load(gates + j * S::W) + acc[j]);
  }
}

// out (+)= dgates W for one row, W (4H, n) as it stands: columns [j0, j0 + 8 vectors), in the order of sums of the packed
// product.
template <class T>
static void multiply_strip(const T* dgates, const T* w, long n, long hidden, long j0, T* out, bool accumulate) {
  typedef Simd<T> S;
  typedef typename S::V V;
  constexpr int N = 8;
  const long groups = lstm_columns(hidden) / kUnits, columns = min_long(N * S::W, n - j0);
  const bool whole = columns == N * S::W;
  for (long g0 = 0; g0 < groups; g0 += kBlock / kUnits) {
    V acc[N];
#pragma GCC unroll 8
    for (int j = 0; j < N; ++j) acc[j] = S::set(T(0));
    for (long g = g0; g < min_long(groups, g0 + kBlock / kUnits); ++g) {
      const long unit = g / 4 * kUnits, units = min_long(kUnits, hidden - unit);
      const T* row = w + (g % 4 * hidden + unit) * n + j0;
      for (long u = 0; u < units; ++u, row += n) {
        const V factor = S::set(dgates[g * kUnits + u]);
        if (whole) {
#pragma GCC unroll 8
          for (int j = 0; j < N; ++j) acc[j] = S::fma(factor, S::load(row + j * S::W), acc[j]);
        } else {
#pragma GCC unroll 8
          for (int j = 0; j < N; ++j)
            if (j * S::W < columns) acc[j] = S::fma(factor, S::load_part(row + j * S::W, columns - j * S::W), acc[j]);
        }
      }
    }
    const bool add = accumulate || g0 > 0;
#pragma GCC unroll 8
    for (int j = 0; j < N; ++j) {
      const long left = columns - j * S::W;
      T* to = out + j0 + j * S::W;
      if (left > 0) S::store_part(to, add ? S::load_part(to, left) + acc[j] : acc[j], left);
    }
  }
}

}  // namespace
}  // namespace RHEME_NS
}  // namespace rheme
