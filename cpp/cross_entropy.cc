// Softmax cross-entropy of given logits, and linear layer and cross-entropy in one. Compiled once per ISA.
//
// Given logits: the loss, and while a row of exponentials is in the cache the gradient that a loss of 1 gives it.
//
// Linear:
// Forward, where logits are not kept: 96 rows at a time, small enough to stay in the cache until their log-sum-exp is taken.
// Backward: for each block of 512 columns of the vocabulary the gradient of the logits is made, used for its columns of dweight
// and added to dx, so that it never exists as a whole, dweight is written once, and both sums are those that plain products
// would form. Rows whose target is ignored take no part in the backward pass.
#include "rows.h"

namespace rheme {
namespace RHEME_NS {
namespace {

constexpr long kForwardRows = 96;
constexpr long kBackwardRows = 2048;  // a multiple of kBlock, so that dweight sums the same blocks whatever the number of rows

// What is left to do for the gradient of a row of logits: softmax - smoothing, less at the target, from e = exp(logit -
// largest).
template <class T>
struct Unwritten {
  const T* e = nullptr;  // (V,)
  T* gradient = nullptr;
  T scale = T(0), share = T(0), hit = T(0);
  long target = 0;

  template <bool STREAM>
  void write(long v) const {
    typedef Simd<T> S;
    const T* from = e;
    const T at_target = e[target] * scale - share - hit;  // read first: the gradient may stand in the place of e
    const typename S::V factor = S::set(scale), less = S::set(share);
    map_vectors<T, STREAM>(0, v, gradient,
                           [=](auto load) __attribute__((always_inline)) { return load(from) * factor - less; });
    gradient[target] = at_target;
  }
};

// e = exp(x - top) of a row. That takes the processor and leaves the memory idle: so the row behind it comes into the L2 cache
// meanwhile, and with WRITE the gradient of the row before goes past the caches.
template <class T, bool WRITE>
static void exponentials(const T* x, long n, T top, T* e, const Unwritten<T>& before) {
  typedef Simd<T> S;
  const T *from = before.e, t_last = WRITE ? before.e[before.target] * before.scale - before.share - before.hit : T(0);
  const typename S::V t = S::set(top), factor = S::set(before.scale), less = S::set(before.share);
  long i = 0;
  for (; i + S::W <= n; i += S::W) {
    __builtin_prefetch(x + n + i, 0, 2);
    S::store(e + i, S::exp(S::load(x + i) - t));
    if constexpr (WRITE) S::stream(before.gradient + i, S::load(from + i) * factor - less);
  }
  if (i < n) S::store_part(e + i, S::exp(S::load_part(x + i, n - i) - t), n - i);
  if constexpr (WRITE) {
    if (i < n) S::store_part(before.gradient + i, S::load_part(from + i, n - i) * factor - less, n - i);
    before.gradient[before.target] = t_last;
  }
}

template <class T>
struct Loss {
  const CrossEntropyArgs<T>& a;

  // The loss of a row, and where `gradient` is given that of its logits, so that each exponential is made once. With `before`
  // it is left to be written past the caches, and e holds the exponentials until then.
  void run(long m, const T* logits, T* gradient = nullptr, T* e = nullptr, Unwritten<T>* before = nullptr) const {
    const T anchor = anchor_of(row_max(logits, a.v));
    const bool ignored = a.targets[m] == a.ignore_index;
    const double s = a.label_smoothing, at_target = ignored ? 0 : static_cast<double>(logits[a.targets[m]]);
    const double total = s != 0 ? row_sum<T>(a.v, [=](auto load) __attribute__((always_inline)) { return load(logits); }) : 0;
    if (before && before->gradient)
      exponentials<T, true>(logits, a.v, anchor, e, *before);
    else if (gradient)
      exponentials<T, false>(logits, a.v, anchor, e, {});
    const T sum = static_cast<T>(gradient ? row_sum<T>(a.v, [=](auto load) __attribute__((always_inline)) { return load(e); })
                                          : row_exp_sum(logits, a.v, anchor));
    const double lse = static_cast<double>(anchor) + static_cast<double>(log_scalar(sum));
    if (a.lse) a.lse[m] = static_cast<T>(lse);
    const double plain = lse - at_target;
    const double loss = s != 0 ? (1 - s) * plain + s * (lse - total / static_cast<double>(a.v)) : plain;
    a.loss[m] = ignored ? T(0) : static_cast<T>(loss);
    if (!gradient) return;
    Unwritten<T> row;
    if (ignored)
      for (long j = 0; j < a.v; ++j) gradient[j] = T(0);
    else
      row = {e, gradient, T(1) / sum, static_cast<T>(s / static_cast<double>(a.v)), static_cast<T>(1 - s), a.targets[m]};
    if (before)
      *before = row;
    else if (!ignored)
      row.template write<false>(a.v);
  }
};

template <class T>
void linear_cross_entropy(const CrossEntropyArgs<T>& a) {
  const long row_blocks = ceil_div(a.m, kForwardRows), panels_count = ceil_div(a.v, kPanel);
  const Loss<T> loss = {a};
  // Where all logits are kept, or there are too few blocks of rows to share out, each panel of the weight is packed into the L2
  // cache and used there for all rows; these stream by, at 4 bytes for 128 operations.
  if (a.logits || row_blocks < num_threads()) {
    Scratch<T> own(a.logits ? 0 : a.m * a.v);
    T* logits = a.logits ? a.logits : own.data;
    parallel(panels_count, [&](long p) {
      Scratch<T> panel(a.k * kPanel);
      pack_panel(a.weight, 1, a.k, a.k, a.v, p, panel.data);
      const Product<T> product = {a.m, a.k, a.v, a.x, a.k, false, panel.data, logits, a.v, a.bias, nullptr, false, p};
      product.run(0, a.m, p, p + 1);
    });
    parallel_rows(a.m, 16 * a.v, [&](long first, long last) {
      for (long m = first; m < last; ++m) loss.run(m, logits + m * a.v);
    });
    return;
  }
  Scratch<T> panels(panel_elements(a.k, a.v));
  parallel(panels_count, [&](long p) { pack_panel(a.weight, 1, a.k, a.k, a.v, p, panels.data + p * a.k * kPanel); });
  parallel(row_blocks, [&](long block) {
    const long first = block * kForwardRows, rows = min_long(kForwardRows, a.m - first);
    Scratch<T> own(rows * a.v);
    const Product<T> product = {rows,     a.k, a.v,    a.x + first * a.k, a.k,  false, panels.data,
                                own.data, a.v, a.bias, nullptr,           false};
    product.run(0, rows, 0, panels_count);
    for (long r = 0; r < rows; ++r) loss.run(first + r, own.data + r * a.v);
  });
}

template <class T>
void cross_entropy(const CrossEntropyArgs<T>& a) {
  const Loss<T> loss = {a};
  if (!a.dlogits || !streams(a.dlogits, a.m * a.v) || a.v % Simd<T>::W) {  // each row on a vector's boundary
    parallel_rows(a.m, 16 * a.v, [&](long first, long last) {
      for (long m = first; m < last; ++m) {
        T* gradient = a.dlogits ? a.dlogits + m * a.v : nullptr;
        loss.run(m, a.logits + m * a.v, gradient, gradient);
      }
    });
    return;
  }
  const long group = max_long(1, min_long(16, a.m / (4L * num_threads()))), pitch = ceil_div(a.v, kLanes) * kLanes;
  parallel(ceil_div(a.m, group), [&](long task) {
    Scratch<T> e(2 * pitch);  // of this row and the one before
    Unwritten<T> before;
    for (long m = task * group; m < min_long(a.m, (task + 1) * group); ++m)
      loss.run(m, a.logits + m * a.v, a.dlogits + m * a.v, e.data + m % 2 * pitch, &before);
    if (before.gradient) before.template write<true>(a.v);
    fence_streams();
  });
}

// The gradient of the logits in the columns [v0, v0 + columns) of one row, from those logits; in place where g is logits.
template <class T>
RHEME_FN void differentiate_logits(const CrossEntropyBackwardArgs<T>& a, long m, long v0, long columns, const T* logits, T* g) {
  typedef Simd<T> S;
  typedef typename S::V V;
  const T smooth = static_cast<T>(a.label_smoothing / static_cast<double>(a.v)), hit = static_cast<T>(1 - a.label_smoothing);
  const V lse = S::set(a.lse[m]), share = S::set(smooth), scale = S::set(a.dloss[m]);
  const long target = a.targets[m] - v0;
  const bool here = target >= 0 && target < columns;
  const T at_target = here ? logits[target] : T(0);  // read first: g may be logits
  // What follows a short part of a row stands far away: that of the row after the next one is asked for now.
  for (long j = 0; logits != g && j < columns; j += 64 / static_cast<long>(sizeof(T)))
    __builtin_prefetch(logits + 2 * a.v + j, 0, 2);
  map_vectors<T>(0, columns, g,
                 [=](auto load) __attribute__((always_inline)) { return (S::exp(load(logits) - lse) - share) * scale; });
  if (here) g[target] = (S::exp(S::set(at_target) - lse)[0] - smooth - hit) * a.dloss[m];
}

template <class T>
void linear_cross_entropy_backward(const CrossEntropyBackwardArgs<T>& a) {
  Scratch<long> used(a.m);
  long count = 0;
  for (long m = 0; m < a.m; ++m) {
    if (a.targets[m] != a.ignore_index)
      used.data[count++] = m;
    else
      for (long k = 0; k < a.k; ++k) a.dx[m * a.k + k] = T(0);
  }
  if (count == 0) {
    for (long i = 0; i < a.v * a.k; ++i) a.dweight[i] = T(0);
    for (long i = 0; a.dbias && i < a.v; ++i) a.dbias[i] = T(0);
    return;
  }
  const bool gather = count != a.m;
  Scratch<T> gathered(gather ? count * a.k : 0);
  if (gather)
    for (long i = 0; i < count; ++i)
      for (long k = 0; k < a.k; ++k) gathered.data[i * a.k + k] = a.x[used.data[i] * a.k + k];
  const T* x = gather ? gathered.data : a.x;

  const long rows_most = min_long(count, kBackwardRows), input_panels = ceil_div(a.k, kPanel), threads = num_threads();
  Scratch<T> g(rows_most * kBlock), x_panels(panel_elements(rows_most, a.k));
  Scratch<T> logit_panels(a.logits ? 0 : panel_elements(a.k, kBlock)), sums(kBlock);
  for (long m0 = 0; m0 < count; m0 += kBackwardRows) {
    const long rows = min_long(kBackwardRows, count - m0);
    pack_panels(x + m0 * a.k, a.k, 1, rows, a.k, x_panels.data);
    for (long v0 = 0; v0 < a.v; v0 += kBlock) {
      const long columns = min_long(kBlock, a.v - v0);
      const T* weight = a.weight + v0 * a.k;
      const Product<T> logits = {
          rows,    a.k,  columns, x + m0 * a.k, a.k, false, logit_panels.data, g.data, columns, a.bias ? a.bias + v0 : nullptr,
          nullptr, false};
      const Product<T> dweight = {columns, rows,    a.k,     g.data, columns, true, x_panels.data, a.dweight + v0 * a.k,
                                  a.k,     nullptr, nullptr, m0 > 0};
      // Some columns are one task up to their part of dweight: their gradients stay in the cache of the core that made them.
      const long width = ceil_div(ceil_div(columns, threads), kPanel) * kPanel;
      parallel(ceil_div(columns, width), [&](long task) {
        const long first = task * width, last = min_long(columns, first + width);
        if (!a.logits) {
          const long p0 = first / kPanel, p1 = ceil_div(last, kPanel);
          for (long p = p0; p < p1; ++p) pack_panel(weight, 1, a.k, a.k, columns, p, logit_panels.data + p * a.k * kPanel);
          logits.run(0, rows, p0, p1);
        }
        for (long r = 0; r < rows; ++r) {
          const long m = used.data[m0 + r];
          T* row = g.data + r * columns + first;
          differentiate_logits(a, m, v0 + first, last - first, a.logits ? a.logits + m * a.v + v0 + first : row, row);
        }
        for (long j = first; j < last; j += kForwardRows) dweight.run(j, min_long(last, j + kForwardRows), 0, input_panels);
        if (!a.dbias) return;
        column_sums(rows, last - first, g.data + first, columns, sums.data + first);
        for (long j = first; j < last; ++j) a.dbias[v0 + j] = m0 ? a.dbias[v0 + j] + sums.data[j] : sums.data[j];
      });
      // A panel is packed where it is used. Where there are few, each is for some of the rows only.
      const long groups = min_long(ceil_div(rows, kTileRows), ceil_div(2 * threads, max_long(1, input_panels)));
      parallel(input_panels * groups, [&](long task) {
        const long p = task / groups, group = task % groups;
        Scratch<T> panel(columns * kPanel);
        pack_panel(weight, a.k, 1, columns, a.k, p, panel.data);
        const Product<T> dx = {rows, columns, a.k,     g.data,         columns, false, panel.data,
                               a.dx, a.k,     nullptr, used.data + m0, v0 > 0,  p};
        dx.run(group * rows / groups, (group + 1) * rows / groups, p, p + 1);
      });
    }
  }
}

template <class T>
void fill(Table<T>& table) {
  table.cross_entropy = cross_entropy<T>;
  table.linear_cross_entropy = linear_cross_entropy<T>;
  table.linear_cross_entropy_backward = linear_cross_entropy_backward<T>;
}

}  // namespace

void fill_cross_entropy(Kernels& kernels) {
  fill(kernels.f32);
  fill(kernels.f64);
}

}  // namespace RHEME_NS
}  // namespace rheme
