// softmax and log_softmax of rows, masked, and their gradients. Compiled once per ISA.
#include "rows.h"

namespace rheme {
namespace RHEME_NS {
namespace {

constexpr long kExpCost = 8;  // an exponential costs about as much as 8 plain elements

template <class T>
void softmax(const SoftmaxArgs<T>& a) {
  parallel_rows(a.m, kExpCost * a.c, [&a](long first, long last) {
    for (long i = first; i < last; ++i) {
      const T* x = a.x + i * a.c;
      T* y = a.y + i * a.c;
      if (a.mask) hide(x, a.mask + i * a.c, a.c, T(-__builtin_inf()), y);
      softmax_row(a.mask ? y : x, a.c, T(1), y);
    }
  });
}

template <class T>
void softmax_backward(const SoftmaxBackwardArgs<T>& a) {
  parallel_rows(a.m, a.c, [&a](long first, long last) {
    for (long i = first; i < last; ++i) softmax_row_backward(a.dy + i * a.c, a.y + i * a.c, a.c, T(1), a.dx + i * a.c);
  });
}

template <class T>
void log_softmax(const SoftmaxArgs<T>& a) {
  typedef Simd<T> S;
  typedef typename S::V V;
  const T lowest = T(-__builtin_inf());
  parallel_rows(a.m, kExpCost * a.c, [&a, lowest](long first, long last) {
    for (long i = first; i < last; ++i) {
      const T* x = a.x + i * a.c;
      T* y = a.y + i * a.c;
      if (a.mask) {
        hide(x, a.mask + i * a.c, a.c, lowest, y);
        x = y;
      }
      const T top = row_max(x, a.c);
      const T anchor = anchor_of(top);
      // log(0) = -inf would turn hidden entries into not-a-numbers; a row of hidden ones stays as it is.
      const T log_sum = top == lowest ? T(0) : log_scalar(static_cast<T>(row_exp_sum(x, a.c, anchor)));
      const V t = S::set(anchor), l = S::set(log_sum);
      map_vectors<T>(0, a.c, y, [=](auto load) __attribute__((always_inline)) { return load(x) - t - l; });
    }
  });
}

// An entry at -inf (hidden) neither gives nor gets a gradient.
template <class T>
void log_softmax_backward(const SoftmaxBackwardArgs<T>& a) {
  typedef Simd<T> S;
  typedef typename S::V V;
  parallel_rows(a.m, kExpCost * a.c, [&a](long first, long last) {
    const V lowest = S::set(T(-__builtin_inf())), zero = S::set(T(0));
    for (long i = first; i < last; ++i) {
      const T *dy = a.dy + i * a.c, *y = a.y + i * a.c;
      const V sum = S::set(static_cast<T>(row_sum<T>(
          a.c, [=](auto load) __attribute__((always_inline)) { return S::select(load(y) == lowest, zero, load(dy)); })));
      map_vectors<T>(0, a.c, a.dx + i * a.c, [=](auto load) __attribute__((always_inline)) {
        const V value = load(y), kept = S::select(value == lowest, zero, load(dy));
        return S::fma(-S::exp(value), sum, kept);
      });
    }
  });
}

template <class T>
void fill(Table<T>& table) {
  table.softmax = softmax<T>;
  table.softmax_backward = softmax_backward<T>;
  table.log_softmax = log_softmax<T>;
  table.log_softmax_backward = log_softmax_backward<T>;
}

}  // namespace

void fill_softmax(Kernels& kernels) {
  fill(kernels.f32);
  fill(kernels.f64);
}

}  // namespace RHEME_NS
}  // namespace rheme
