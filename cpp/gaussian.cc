// A Gaussian latent: reparametrised sample and divergence from the standard normal. Compiled once per ISA.
//
// Free bits (Kingma et al. 2016): a term of the divergence below them is raised to them and gets no gradient, element by
// element, or, over the batch, column by column by the column's mean.
#include "rows.h"

namespace rheme {
namespace RHEME_NS {
namespace {

// gate[d]: 1 where the mean of column d is below the free bits. Rows are added in order, blocks of 512 in order.
template <class T>
static void batch_gate(long n, long d, T free_bits, const T* kl, T* gate) {
  column_sums(n, d, kl, d, gate);
  for (long j = 0; j < d; ++j) gate[j] = gate[j] / static_cast<T>(n) < free_bits ? T(1) : T(0);
}

template <class T>
void gaussian_kl(const GaussianArgs<T>& a) {
  typedef Simd<T> S;
  typedef typename S::V V;
  const bool over_elements = !a.over_batch;
  const V floor = S::set(a.free_bits);
  const bool stream = streams(a.z, a.n * a.d) && streams(a.kl, a.n * a.d);
  parallel_chunks(a.n * a.d, [&a, over_elements, floor, stream](long first, long last) {
    const auto formula = [=, &a](auto load, V& z, V& kl) __attribute__((always_inline)) {
      const V mu = load(a.mu), logvar = load(a.logvar), sigma = gaussian_sigma<S>(logvar);
      z = S::fma(sigma, load(a.eps), mu);
      kl = gaussian_divergence<S>(mu, logvar, sigma);
      if (over_elements) kl = S::select(kl < floor, floor, kl);
    };
    if (stream) {
      map_vectors_twice<T, true>(first, last, a.z, a.kl, formula);
      fence_streams();
    } else {
      map_vectors_twice<T>(first, last, a.z, a.kl, formula);
    }
  });
  if (over_elements || a.n == 0) return;
  Scratch<T> gate(a.d);
  batch_gate(a.n, a.d, a.free_bits, a.kl, gate.data);
  const T* closed = gate.data;
  parallel_rows(a.n, a.d, [&a, closed](long first, long last) {
    for (long i = first; i < last; ++i)
      for (long j = 0; j < a.d; ++j)
        if (closed[j] != T(0)) a.kl[i * a.d + j] = a.free_bits;
  });
}

template <class T>
void gaussian_kl_backward(const GaussianBackwardArgs<T>& a) {
  typedef Simd<T> S;
  typedef typename S::V V;
  const bool over_batch = a.over_batch;
  Scratch<T> gate(over_batch ? a.d : 0);
  if (over_batch && a.n > 0) {
    Scratch<T> kl(a.n * a.d);
    T* out = kl.data;
    parallel_chunks(a.n * a.d, [&a, out](long first, long last) {
      map_vectors<T>(first, last, out, [=, &a](auto load) __attribute__((always_inline)) {
        const V logvar = load(a.logvar);
        return gaussian_divergence<S>(load(a.mu), logvar, gaussian_sigma<S>(logvar));
      });
    });
    batch_gate(a.n, a.d, a.free_bits, out, gate.data);
  }
  const T* closed = gate.data;
  const V floor = S::set(a.free_bits), zero = S::set(T(0));
  if (!over_batch) {
    const bool stream = streams(a.dmu, a.n * a.d) && streams(a.dlogvar, a.n * a.d);
    parallel_chunks(a.n * a.d, [&a, floor, zero, stream](long first, long last) {
      const auto formula = [=, &a](auto load, V& dmu, V& dlogvar) __attribute__((always_inline)) {
        const V m = load(a.mu), l = load(a.logvar), sigma = gaussian_sigma<S>(l);
        const V dkl = S::select(gaussian_divergence<S>(m, l, sigma) < floor, zero, load(a.dkl));
        gaussian_gradient<S>(load(a.dz), dkl, m, l, load(a.eps), sigma, dmu, dlogvar);
      };
      if (stream) {
        map_vectors_twice<T, true>(first, last, a.dmu, a.dlogvar, formula);
        fence_streams();
      } else {
        map_vectors_twice<T>(first, last, a.dmu, a.dlogvar, formula);
      }
    });
    return;
  }
  parallel_rows(a.n, a.d, [&a, zero, closed](long first, long last) {
    for (long i = first; i < last; ++i) {
      const long at = i * a.d;
      const T *dz = a.dz + at, *dkl = a.dkl + at, *mu = a.mu + at, *logvar = a.logvar + at, *eps = a.eps + at;
      map_vectors_twice<T>(0, a.d, a.dmu + at, a.dlogvar + at,
                           [=](auto load, V& dmu, V& dlogvar) __attribute__((always_inline)) {
                             const V m = load(mu), l = load(logvar), sigma = gaussian_sigma<S>(l);
                             const V open = S::select(load(closed) != zero, zero, load(dkl));
                             gaussian_gradient<S>(load(dz), open, m, l, load(eps), sigma, dmu, dlogvar);
                           });
    }
  });
}

template <class T>
void fill(Table<T>& table) {
  table.gaussian_kl = gaussian_kl<T>;
  table.gaussian_kl_backward = gaussian_kl_backward<T>;
}

}  // namespace

void fill_gaussian(Kernels& kernels) {
  fill(kernels.f32);
  fill(kernels.f64);
}

}  // namespace RHEME_NS
}  // namespace rheme
