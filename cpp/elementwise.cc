// Elementwise ops and their gradients; dropout. Compiled once per ISA.
#include "philox.h"

namespace rheme {
namespace RHEME_NS {
namespace {

template <class T, class F>
RHEME_FN void unary(const UnaryArgs<T>& a, F f) {
  const T* x = a.x;
  T* y = a.y;
  parallel_chunks(a.n, [=](long first, long last) {
    map_vectors<T>(first, last, y, [=](auto load) __attribute__((always_inline)) { return f(load(x)); });
  });
}

template <class T, class F>
RHEME_FN void unary_backward(const UnaryBackwardArgs<T>& a, F f) {
  const T *dy = a.dy, *saved = a.saved;
  T* dx = a.dx;
  parallel_chunks(a.n, [=](long first, long last) {
    map_vectors<T>(first, last, dx, [=](auto load) __attribute__((always_inline)) { return f(load(dy), load(saved)); });
  });
}

// b is broadcast over rows, columns or both; where it is not, a and b are one long row.
template <class T, class F>
RHEME_FN void binary(const BinaryArgs<T>& args, F f) {
  typedef Simd<T> S;
  BinaryArgs<T> a = args;
  if (a.b_rows == a.b_columns) {
    a.c = a.m * a.c;
    a.m = 1;
  }
  if (a.m == 1) {
    parallel_chunks(a.c, [=](long first, long last) {
      if (a.b_columns) {
        map_vectors<T>(first, last, a.y, [=](auto load) __attribute__((always_inline)) { return f(load(a.a), load(a.b)); });
      } else {
        const typename S::V b = S::set(a.b[0]);
        map_vectors<T>(first, last, a.y, [=](auto load) __attribute__((always_inline)) { return f(load(a.a), b); });
      }
    });
    return;
  }
  parallel_rows(a.m, a.c, [=](long first, long last) {
    for (long i = first; i < last; ++i) {
      const T* x = a.a + i * a.c;
      if (a.b_columns) {
        map_vectors<T>(0, a.c, a.y + i * a.c, [=](auto load) __attribute__((always_inline)) { return f(load(x), load(a.b)); });
      } else {
        const typename S::V b = S::set(a.b[i]);
        map_vectors<T>(0, a.c, a.y + i * a.c, [=](auto load) __attribute__((always_inline)) { return f(load(x), b); });
      }
    }
  });
}

#define RHEME_BINARY(name, expression)                                                   \
  template <class T>                                                                     \
  void name(const BinaryArgs<T>& args) {                                                 \
    typedef typename Simd<T>::V V;                                                       \
    binary<T>(args, [](V a, V b) __attribute__((always_inline)) { return expression; }); \
  }
RHEME_BINARY(add, a + b)
RHEME_BINARY(sub, a - b)
RHEME_BINARY(mul, a* b)
RHEME_BINARY(div, a / b)
#undef RHEME_BINARY

#define RHEME_UNARY(name, expression)                                              \
  template <class T>                                                               \
  void name(const UnaryArgs<T>& args) {                                            \
    typedef Simd<T> S;                                                             \
    typedef typename S::V V;                                                       \
    unary<T>(args, [](V x) __attribute__((always_inline)) { return expression; }); \
  }
RHEME_UNARY(neg, -x)
RHEME_UNARY(exponential, S::exp(x))
RHEME_UNARY(logarithm, S::log(x))
RHEME_UNARY(tanh, S::tanh(x))
RHEME_UNARY(sigmoid, S::sigmoid(x))
RHEME_UNARY(relu, S::select(x > S::set(T(0)), x, S::set(T(0))))
#undef RHEME_UNARY

#define RHEME_BACKWARD(name, expression)                                                              \
  template <class T>                                                                                  \
  void name(const UnaryBackwardArgs<T>& args) {                                                       \
    typedef Simd<T> S;                                                                                \
    typedef typename S::V V;                                                                          \
    unary_backward<T>(args, [](V dy, V saved) __attribute__((always_inline)) { return expression; }); \
  }
RHEME_BACKWARD(exp_backward, dy* saved)
RHEME_BACKWARD(log_backward, dy / saved)
RHEME_BACKWARD(tanh_backward, dy* S::fma(-saved, saved, S::set(T(1))))
RHEME_BACKWARD(sigmoid_backward, dy * saved * (S::set(T(1)) - saved))
RHEME_BACKWARD(relu_backward, S::select(saved > S::set(T(0)), dy, S::set(T(0))))
#undef RHEME_BACKWARD

template <class T>
RHEME_FN T drop(T x, uint32_t word, uint32_t threshold, T scale) {
  return (word >> 8) >= threshold ? x * scale : T(0);
}

template <class T>
void dropout(const DropoutArgs<T>& a) {
  if (a.n == 0) return;
  const long period = a.period > 0 && a.period < a.n ? a.period : a.n;
  const long runs = ceil_div(period, kWords), repeats = ceil_div(a.n, period);
  constexpr long kRuns = 32;
  const DropoutArgs<T> d = a;
  parallel(ceil_div(runs, kRuns), [=](long task) {  // the words of a stretch of the period serve all its repeats
    uint32_t words[kWords];
    for (long run = task * kRuns; run < min_long(runs, (task + 1) * kRuns); ++run) {
      philox_words(d.seed, d.stream, static_cast<uint64_t>(run * (kWords / 4)), words);
      const long first = run * kWords, within = min_long(kWords, period - first);
      for (long repeat = 0; repeat < repeats; ++repeat) {
        const long at = repeat * period + first, count = min_long(within, d.n - at);
        const T* x = d.x + at;
        T* y = d.y + at;
        for (long i = 0; i < count; ++i) y[i] = drop(x[i], words[i], d.threshold, d.scale);
      }
    }
  });
}

template <class T>
void fill(Table<T>& table) {
  table.add = add<T>;
  table.sub = sub<T>;
  table.mul = mul<T>;
  table.div = div<T>;
  table.neg = neg<T>;
  table.exp = exponential<T>;
  table.log = logarithm<T>;
  table.tanh = tanh<T>;
  table.sigmoid = sigmoid<T>;
  table.relu = relu<T>;
  table.exp_backward = exp_backward<T>;
  table.log_backward = log_backward<T>;
  table.tanh_backward = tanh_backward<T>;
  table.sigmoid_backward = sigmoid_backward<T>;
  table.relu_backward = relu_backward<T>;
  table.dropout = dropout<T>;
}

}  // namespace

void fill_elementwise(Kernels& kernels) {
  fill(kernels.f32);
  fill(kernels.f64);
}

}  // namespace RHEME_NS
}  // namespace rheme
