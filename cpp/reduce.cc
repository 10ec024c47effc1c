// Reductions over the middle axis of (A, K, C), masked. Compiled once per ISA.
//
// Every column is reduced in the same order wherever it stands: 16 virtual lanes (element k belongs to lane k mod 16), blocks
// of 4096 elements, block sums in double. With one column the lanes are the vectors'; with more, each column has 16 partial
// sums.
#include "rows.h"

namespace rheme {
namespace RHEME_NS {
namespace {

constexpr long kStrip = 64;  // columns at a time

// The elements of a strip of columns, or of a single one, with the hidden ones replaced. Whole vectors may be read from row().
template <class T>
struct Source {
  const ReduceArgs<T>& a;
  long at;       // of the first element
  long columns;  // of the strip
  T fill;

  // Row k in `buffer`, padded with `fill`.
  const T* row(long k, T* buffer) const {
    const long i = at + k * a.c;
    if (!a.mask && columns == kStrip) return a.x + i;
    for (long j = 0; j < columns; ++j) buffer[j] = !a.mask || a.mask[i + j] ? a.x[i + j] : fill;
    for (long j = columns; j < kStrip; ++j) buffer[j] = fill;
    return buffer;
  }
};

// total[j] = sum over k of f(x[k, j]), for a strip.
template <class T, class F>
RHEME_FN void strip_sum(const Source<T>& source, double* total, F f) {
  typedef Simd<T> S;
  alignas(64) T lanes[kLanes][kStrip];
  alignas(64) T buffer[kStrip];
  for (long j = 0; j < kStrip; ++j) total[j] = 0;
  for (long block = 0; block < source.a.k; block += kReduceBlock) {
    for (long l = 0; l < kLanes; ++l)
      for (long j = 0; j < kStrip; ++j) lanes[l][j] = T(0);
    for (long k = block; k < min_long(source.a.k, block + kReduceBlock); ++k) {
      const T* x = source.row(k, buffer);
      T* acc = lanes[k % kLanes];
      for (long j = 0; j < kStrip; j += S::W) S::store(acc + j, S::load(acc + j) + f(S::load(x + j), j));
    }
    for (long width = kLanes / 2; width >= 1; width /= 2)
      for (long l = 0; l < width; ++l)
        for (long j = 0; j < kStrip; ++j) lanes[l][j] = lanes[l][j] + lanes[l + width][j];
    for (long j = 0; j < kStrip; ++j) total[j] += static_cast<double>(lanes[0][j]);
  }
}

// Calls strip(source, first output, columns) over the pool, or line(x, first element, output) where there is one column.
template <class T, class Line, class Strip>
static void reduce(const ReduceArgs<T>& a, T fill, Line line, Strip strip) {
  if (a.c == 1) {
    parallel_rows(a.a, 4 * a.k, [&](long first, long last) {
      Scratch<T> kept(a.mask ? a.k : 0);
      for (long i = first; i < last; ++i) {
        const T* x = a.x + i * a.k;
        if (a.mask) hide(x, a.mask + i * a.k, a.k, fill, kept.data);
        line(a.mask ? kept.data : x, i);
      }
    });
    return;
  }
  const long strips = ceil_div(a.c, kStrip);
  parallel_rows(a.a * strips, 4 * a.k * min_long(a.c, kStrip), [&](long first, long last) {
    for (long task = first; task < last; ++task) {
      const long i = task / strips, column = task % strips * kStrip;
      const Source<T> source = {a, i * a.k * a.c + column, min_long(kStrip, a.c - column), fill};
      strip(source, i * a.c + column);
    }
  });
}

template <class T>
static void sum_scaled(const ReduceArgs<T>& a, bool average) {
  typedef typename Simd<T>::V V;
  const auto scaled = [&a, average](double total, long output) {
    if (!average) return static_cast<T>(total);
    long count = a.k;
    if (a.mask) {
      count = 0;
      const uint8_t* mask = a.mask + output / a.c * a.k * a.c + output % a.c;
      for (long k = 0; k < a.k; ++k) count += mask[k * a.c] != 0;
    }
    return count ? static_cast<T>(total / static_cast<double>(count)) : T(0);
  };
  reduce(
      a, T(0),
      [&](const T* x, long i) {
        a.y[i] = scaled(row_sum<T>(a.k, [=](auto load) __attribute__((always_inline)) { return load(x); }), i);
      },
      [&](const Source<T>& source, long output) {
        double total[kStrip];
        strip_sum(source, total, [](V x, long) __attribute__((always_inline)) { return x; });
        for (long j = 0; j < source.columns; ++j) a.y[output + j] = scaled(total[j], output + j);
      });
}

template <class T>
void sum(const ReduceArgs<T>& a) {
  sum_scaled(a, false);
}

template <class T>
void mean(const ReduceArgs<T>& a) {
  sum_scaled(a, true);
}

template <class T>
void logsumexp(const ReduceArgs<T>& a) {
  typedef Simd<T> S;
  typedef typename S::V V;
  const T lowest = T(-__builtin_inf());
  reduce(
      a, lowest,
      [&](const T* x, long i) {
        const T anchor = anchor_of(row_max(x, a.k));
        a.y[i] = anchor + log_scalar(static_cast<T>(row_exp_sum(x, a.k, anchor)));
      },
      [&](const Source<T>& source, long output) {
        alignas(64) T top[kStrip], buffer[kStrip];
        for (long j = 0; j < kStrip; ++j) top[j] = lowest;
        for (long k = 0; k < a.k; ++k) {
          const T* x = source.row(k, buffer);
          for (long j = 0; j < kStrip; j += S::W) S::store(top + j, S::max(S::load(x + j), S::load(top + j)));
        }
        for (long j = 0; j < kStrip; ++j) top[j] = anchor_of(top[j]);
        double total[kStrip];
        const T* anchor = top;
        strip_sum(source, total,
                  [anchor](V x, long j) __attribute__((always_inline)) { return S::exp(x - S::load(anchor + j)); });
        for (long j = 0; j < source.columns; ++j) a.y[output + j] = top[j] + log_scalar(static_cast<T>(total[j]));
      });
}

// The first kept element stands until a larger one comes, so that a leading not-a-number stays and others are passed over.
template <class T>
void max(const ReduceArgs<T>& a) {
  const T lowest = T(-__builtin_inf());
  parallel_rows(a.a, a.k * a.c, [&](long first, long last) {
    for (long i = first; i < last; ++i) {
      const T* x = a.x + i * a.k * a.c;
      const uint8_t* mask = a.mask ? a.mask + i * a.k * a.c : nullptr;
      T* y = a.y + i * a.c;
      int64_t* position = a.positions + i * a.c;
      if (a.c == 1 && !mask && a.k > 0 && x[0] == x[0]) {
        const T top = row_max(x, a.k);
        long k = 0;
        while (!(x[k] == top)) ++k;
        y[0] = x[k];  // the first among equals: of 0 and -0, which one row_max finds depends on the width of the vectors
        position[0] = k;
        continue;
      }
      for (long j = 0; j < a.c; ++j) {
        y[j] = lowest;
        position[j] = -1;
      }
      for (long k = 0; k < a.k; ++k)
        for (long j = 0; j < a.c; ++j) {
          const bool better = (!mask || mask[k * a.c + j]) && (position[j] < 0 || x[k * a.c + j] > y[j]);
          y[j] = better ? x[k * a.c + j] : y[j];
          position[j] = better ? k : position[j];
        }
    }
  });
}

template <class T>
void fill(Table<T>& table) {
  table.sum = sum<T>;
  table.mean = mean<T>;
  table.max = max<T>;
  table.logsumexp = logsumexp<T>;
}

}  // namespace

void fill_reduce(Kernels& kernels) {
  fill(kernels.f32);
  fill(kernels.f64);
}

}  // namespace RHEME_NS
}  // namespace rheme
