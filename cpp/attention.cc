// Dot-product attention over time-major arrays, and its gradient. Compiled once per ISA.
//
// Batch rows are independent: each is a task of its own, which packs its keys and values and runs plain products on them.
#include "rows.h"

namespace rheme {
namespace RHEME_NS {
namespace {

// C (m, n) = A (m, k) B (k, n) by the calling thread, every operand with strides of its own.
template <class T>
static void product(long m, long k, long n, const T* a, long a_row, bool a_transposed, const T* b, long b_k, long b_n, T* c,
                    long c_row) {
  Scratch<T> panels(panel_elements(k, n));
  const long count = ceil_div(n, kPanel);
  for (long p = 0; p < count; ++p) pack_panel(b, b_k, b_n, k, n, p, panels.data + p * k * kPanel);
  const Product<T> run = {m, k, n, a, a_row, a_transposed, panels.data, c, c_row, nullptr, nullptr, false};
  run.run(0, m, 0, count);
}

template <class T>
static void zero_rows(T* x, long first, long last, long row, long n) {
  for (long i = first; i < last; ++i)
    for (long j = 0; j < n; ++j) x[i * row + j] = T(0);
}

template <class T>
void attention(const AttentionArgs<T>& a) {
  const long h = a.hidden, c = a.columns, h_row = a.batch * h, c_row = a.batch * c;
  parallel(a.batch, [&a, h, c, h_row, c_row](long n) {
    const long live = a.lengths ? a.lengths[n] : a.source;
    T *weights = a.weights + n * a.time * a.source, *context = a.context + n * c;
    if (live == 0) {
      zero_rows(weights, 0, a.time, a.source, a.source);
      zero_rows(context, 0, a.time, c_row, c);
      return;
    }
    product(a.time, h, live, a.query + n * h, h_row, false, a.key + n * h, 1, h_row, weights, a.source);
    for (long t = 0; t < a.time; ++t) {
      T* row = weights + t * a.source;
      softmax_row(row, live, a.scale, row);
      for (long s = live; s < a.source; ++s) row[s] = T(0);
    }
    product(a.time, live, c, weights, a.source, false, a.value + n * c, c_row, 1, context, c_row);
  });
}

template <class T>
void attention_backward(const AttentionBackwardArgs<T>& a) {
  const long h = a.hidden, c = a.columns, h_row = a.batch * h, c_row = a.batch * c;
  parallel(a.batch, [&a, h, c, h_row, c_row](long n) {
    const T* weights = a.weights + n * a.time * a.source;
    long live = 0;  // past it every weight is zero
    for (long t = 0; t < a.time; ++t)
      for (long s = a.source; s > live; --s)
        if (weights[t * a.source + s - 1] != T(0)) {
          live = s;
          break;
        }
    zero_rows(a.dkey + n * h, live, a.source, h_row, h);
    zero_rows(a.dvalue + n * c, live, a.source, c_row, c);
    if (live == 0) {
      zero_rows(a.dquery + n * h, 0, a.time, h_row, h);
      return;
    }
    const T* dcontext = a.dcontext + n * c;
    Scratch<T> dscores(a.time * live);
    product(a.time, c, live, dcontext, c_row, false, a.value + n * c, 1, c_row, dscores.data, live);
    for (long t = 0; t < a.time; ++t) {
      T* row = dscores.data + t * live;
      if (a.dweights) {
        const T* extra = a.dweights + (n * a.time + t) * a.source;
        for (long s = 0; s < live; ++s) row[s] = row[s] + extra[s];
      }
      softmax_row_backward(row, weights + t * a.source, live, a.scale, row);
    }
    product(a.time, live, h, dscores.data, live, false, a.key + n * h, h_row, 1, a.dquery + n * h, h_row);
    product(live, a.time, h, dscores.data, live, true, a.query + n * h, h_row, 1, a.dkey + n * h, h_row);
    product(live, a.time, c, weights, a.source, true, dcontext, c_row, 1, a.dvalue + n * c, c_row);
  });
}

template <class T>
void fill(Table<T>& table) {
  table.attention = attention<T>;
  table.attention_backward = attention_backward<T>;
}

}  // namespace

void fill_attention(Kernels& kernels) {
  fill(kernels.f32);
  fill(kernels.f64);
}

}  // namespace RHEME_NS
}  // namespace rheme
