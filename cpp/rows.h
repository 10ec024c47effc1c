// What ops on rows share: fixed-order reductions over a row, softmax of a row, and the split of rows over threads. Included by
// kernel files only; internal linkage throughout.
//
// A reduction runs over 16 virtual lanes in blocks of 4096 elements; the blocks' sums are added in order, in double.
#pragma once

#include "gemm.h"

namespace rheme {
namespace RHEME_NS {
namespace {

constexpr long kReduceBlock = 4096;
constexpr long kChunk = 16384;            // elements of an elementwise task
constexpr long kStreamBytes = 16L << 20;  // results of this size go past the caches: their reader would not find them there

// Whether to stream to `count` elements from y on: many, and whole vectors on their own boundary.
template <class T>
RHEME_FN bool streams(const T* y, long count) {
  return count * static_cast<long>(sizeof(T)) >= kStreamBytes && reinterpret_cast<uintptr_t>(y) % RHEME_VECTOR_BYTES == 0;
}

// Calls body(first, last) on chunks of a flat array of n elements.
template <class F>
static void parallel_chunks(long n, F body) {
  parallel(ceil_div(n, kChunk), [=](long t) { body(t * kChunk, min_long(n, (t + 1) * kChunk)); });
}

// Calls body(first, last) on groups of rows of `cost` elements' work each.
template <class F>
static void parallel_rows(long rows, long cost, F body) {
  const long group = max_long(1, kChunk / max_long(1, cost));
  parallel(ceil_div(rows, group), [=](long t) { body(t * group, min_long(rows, (t + 1) * group)); });
}

// y[i] = f(x[i]...) by whole vectors and a padded tail: f(load) gets a loader that reads a pointer at the current place.
template <class T, bool STREAM = false, class F>
RHEME_FN void map_vectors(long first, long last, T* y, F f) {
  typedef Simd<T> S;
  long i = first;
  for (; i + S::W <= last; i += S::W) {
    const typename S::V a = f([i](const T* p) __attribute__((always_inline)) { return S::load(p + i); });
    if constexpr (STREAM)
      S::stream(y + i, a);
    else
      S::store(y + i, a);
  }
  if (i < last)
    S::store_part(y + i, f([i, last](const T* p) __attribute__((always_inline)) { return S::load_part(p + i, last - i); }),
                  last - i);
}

// The same with two results: f(load, a, b) gives a to y and b to z.
template <class T, bool STREAM = false, class F>
RHEME_FN void map_vectors_twice(long first, long last, T* y, T* z, F f) {
  typedef Simd<T> S;
  typename S::V a, b;
  long i = first;
  for (; i + S::W <= last; i += S::W) {
    f([i](const T* p) __attribute__((always_inline)) { return S::load(p + i); }, a, b);
    if constexpr (STREAM) {
      S::stream(y + i, a);
      S::stream(z + i, b);
    } else {
      S::store(y + i, a);
      S::store(z + i, b);
    }
  }
  if (i < last) {
    f([i, last](const T* p) __attribute__((always_inline)) { return S::load_part(p + i, last - i); }, a, b);
    S::store_part(y + i, a, last - i);
    S::store_part(z + i, b, last - i);
  }
}

// Sum over i of term(j, x) where term gets the 16 lanes from i on, as vectors: term(load) returns a vector, called once per
// vector of the lanes; terms past n must be 0, which loads of 0 there give unless `fill` says otherwise.
template <class T, class F>
RHEME_FN double row_sum(long n, F term, T fill = T(0)) {
  typedef Simd<T> S;
  typedef typename S::V V;
  constexpr long N = Lanes<T>::N;
  double total = 0;
  for (long block = 0; block < n; block += kReduceBlock) {
    const long end = min_long(n, block + kReduceBlock);
    V acc[N];
#pragma GCC unroll 8
    for (long j = 0; j < N; ++j) acc[j] = S::set(T(0));
    long i = block;
    for (; i + kLanes <= end; i += kLanes) {
#pragma GCC unroll 8
      for (long j = 0; j < N; ++j) {
        const long at = i + j * S::W;
        acc[j] = acc[j] + term([at](const T* p) __attribute__((always_inline)) { return S::load(p + at); });
      }
    }
    if (i < end) {
#pragma GCC unroll 8
      for (long j = 0; j < N; ++j) {
        const long at = i + j * S::W;
        acc[j] = acc[j] + term([at, end, fill](const T* p) __attribute__((always_inline)) {
                   return S::load_part(p + (at < end ? at : 0), end - at, fill);
                 });
      }
    }
    Lanes<T> lanes;
#pragma GCC unroll 8
    for (long j = 0; j < N; ++j) lanes.v[j] = acc[j];
    total += static_cast<double>(Lanes<T>::sum(lanes));
  }
  return total;
}

// The largest element, -inf of nothing; not-a-numbers are passed over.
template <class T>
RHEME_FN T row_max(const T* x, long n) {
  typedef Simd<T> S;
  typedef typename S::V V;
  const T lowest = T(-__builtin_inf());
  V m[4];
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) m[j] = S::set(lowest);
  long i = 0;
  for (; i + 4 * S::W <= n; i += 4 * S::W)
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) m[j] = S::max(S::load(x + i + j * S::W), m[j]);
  for (; i + S::W <= n; i += S::W) m[0] = S::max(S::load(x + i), m[0]);
  if (i < n) m[0] = S::max(S::load_part(x + i, n - i, lowest), m[0]);
  T l[S::W];
  S::store(l, S::max(S::max(m[0], m[1]), S::max(m[2], m[3])));
  T best = l[0];
  for (long j = 1; j < S::W; ++j) best = l[j] > best ? l[j] : best;
  return best;
}

// What is taken off before exponentials: the largest element, or 0 where it is infinite: inf - inf is no number.
template <class T>
RHEME_FN T anchor_of(T top) {
  return top - top == T(0) ? top : T(0);
}

// Sum of exp(x - top).
template <class T>
RHEME_FN double row_exp_sum(const T* x, long n, T top) {
  typedef Simd<T> S;
  const typename S::V t = S::set(top);
  return row_sum<T>(n, [=](auto load) __attribute__((always_inline)) { return S::exp(load(x) - t); }, T(-__builtin_inf()));
}

// log of a positive number, by the vectors' logarithm, so that it has the same bits on every ISA.
template <class T>
RHEME_FN T log_scalar(T x) {
  return Simd<T>::log(Simd<T>::set(x))[0];
}

// y = softmax(scale x) of one row; all zeros where every x is -inf. y may be x.
template <class T>
static void softmax_row(const T* x, long n, T scale, T* y) {
  typedef Simd<T> S;
  typedef typename S::V V;
  const T lowest = T(-__builtin_inf());
  const V factor = S::set(scale);
  if (scale != T(1)) {
    map_vectors<T>(0, n, y, [=](auto load) __attribute__((always_inline)) { return load(x) * factor; });
    x = y;
  }
  const T top = row_max(x, n);
  if (top == lowest) {
    bool hidden = true;  // a row of not-a-numbers stays one
    for (long i = 0; i < n; ++i)
      if (x[i] != lowest) hidden = false;
    const T fill = hidden ? T(0) : T(__builtin_nan(""));
    for (long i = 0; i < n; ++i) y[i] = fill;
    return;
  }
  const V t = S::set(anchor_of(top));
  map_vectors<T>(0, n, y, [=](auto load) __attribute__((always_inline)) { return S::exp(load(x) - t); });
  const V sum = S::set(static_cast<T>(row_sum<T>(n, [=](auto load) __attribute__((always_inline)) { return load(y); })));
  map_vectors<T>(0, n, y, [=](auto load) __attribute__((always_inline)) { return load(y) / sum; });
}

// dx = y (dy - sum(y dy)) scale.
template <class T>
static void softmax_row_backward(const T* dy, const T* y, long n, T scale, T* dx) {
  typedef Simd<T> S;
  typedef typename S::V V;
  const V inner =
      S::set(static_cast<T>(row_sum<T>(n, [=](auto load) __attribute__((always_inline)) { return load(y) * load(dy); })));
  const V factor = S::set(scale);
  map_vectors<T>(0, n, dx, [=](auto load) __attribute__((always_inline)) { return load(y) * (load(dy) - inner) * factor; });
}

// x with the hidden entries replaced.
template <class T>
static void hide(const T* x, const uint8_t* mask, long n, T fill, T* y) {
  for (long i = 0; i < n; ++i) y[i] = mask[i] ? x[i] : fill;
}

}  // namespace
}  // namespace RHEME_NS
}  // namespace rheme
