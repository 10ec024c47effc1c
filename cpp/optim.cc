// Optimisers, each one pass over its arrays. Compiled once per ISA.
#include "rows.h"

namespace rheme {
namespace RHEME_NS {
namespace {

template <class T>
void sum_of_squares(const SquaresArgs<T>& a) {
  typedef typename Simd<T>::V V;
  constexpr long kGroup = 8;  // blocks of a task
  const long blocks = ceil_div(a.n, kReduceBlock);
  Scratch<double> sums(blocks);
  double* out = sums.data;
  parallel(ceil_div(blocks, kGroup), [=, &a](long task) {
    for (long b = task * kGroup; b < min_long(blocks, (task + 1) * kGroup); ++b) {
      const T* x = a.x + b * kReduceBlock;
      out[b] = row_sum<T>(min_long(kReduceBlock, a.n - b * kReduceBlock), [=](auto load) __attribute__((always_inline)) {
        const V v = load(x);
        return v * v;
      });
    }
  });
  double sum = 0;
  for (long b = 0; b < blocks; ++b) sum += out[b];
  *a.sum = sum;
}

template <class T>
void adamw(const AdamwArgs<T>& a) {
  typedef Simd<T> S;
  typedef typename S::V V;
  parallel_chunks(a.n, [args = a](long first, long last) {
    long i = first;
    for (; i + S::W <= last; i += S::W) {
      V param = S::load(args.param + i), m = S::load(args.m + i), v = S::load(args.v + i);
      adamw_update<S>(args, S::load(args.grad + i), param, m, v);
      S::store(args.param + i, param);
      S::store(args.m + i, m);
      S::store(args.v + i, v);
    }
    if (i < last) {
      const long n = last - i;
      V param = S::load_part(args.param + i, n), m = S::load_part(args.m + i, n), v = S::load_part(args.v + i, n);
      adamw_update<S>(args, S::load_part(args.grad + i, n), param, m, v);
      S::store_part(args.param + i, param, n);
      S::store_part(args.m + i, m, n);
      S::store_part(args.v + i, v, n);
    }
  });
}

// Gradient with weight decay; with momentum the buffer becomes momentum * buffer + gradient, and is what is taken off.
template <class T>
void sgd(const SgdArgs<T>& a) {
  typedef Simd<T> S;
  typedef typename S::V V;
  parallel_chunks(a.n, [args = a](long first, long last) {
    const V scale = S::set(args.grad_scale), decay = S::set(args.weight_decay), momentum = S::set(args.momentum);
    const V rate = S::set(-args.learning_rate);
    const T *param = args.param, *grad = args.grad, *step = args.grad;
    if (args.momentum_buffer) {
      const T* buffer = args.momentum_buffer;
      map_vectors<T>(first, last, args.momentum_buffer, [=](auto load) __attribute__((always_inline)) {
        return S::fma(momentum, load(buffer), S::fma(decay, load(param), load(grad) * scale));
      });
      map_vectors<T>(first, last, args.param,
                     [=](auto load) __attribute__((always_inline)) { return S::fma(rate, load(buffer), load(param)); });
      return;
    }
    map_vectors<T>(first, last, args.param, [=](auto load) __attribute__((always_inline)) {
      return S::fma(rate, S::fma(decay, load(param), load(step) * scale), load(param));
    });
  });
}

template <class T>
void fill(Table<T>& table) {
  table.sum_of_squares = sum_of_squares<T>;
  table.adamw = adamw<T>;
  table.sgd = sgd<T>;
}

}  // namespace

void fill_optim(Kernels& kernels) {
  fill(kernels.f32);
  fill(kernels.f64);
}

}  // namespace RHEME_NS
}  // namespace rheme
