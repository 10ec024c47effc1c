// Layer normalisation (Ba et al. 2016). Compiled once per ISA.
#include "rows.h"

namespace rheme {
namespace RHEME_NS {
namespace {

template <class T>
void layer_norm(const LayerNormArgs<T>& a) {
  typedef Simd<T> S;
  typedef typename S::V V;
  parallel_rows(a.m, a.c, [&a](long first, long last) {
    const double inverse = 1.0 / static_cast<double>(a.c);
    for (long i = first; i < last; ++i) {
      const T *x = a.x + i * a.c, *weight = a.weight, *bias = a.bias;
      const T mean =
          static_cast<T>(row_sum<T>(a.c, [=](auto load) __attribute__((always_inline)) { return load(x); }) * inverse);
      const V centre = S::set(mean);
      const double squares = row_sum<T>(
          a.c,
          [=](auto load) __attribute__((always_inline)) {
            const V d = load(x) - centre;
            return d * d;
          },
          mean);
      const T rstd = static_cast<T>(1.0 / __builtin_sqrt(squares * inverse + static_cast<double>(a.epsilon)));
      const V scale = S::set(rstd);
      map_vectors<T>(0, a.c, a.y + i * a.c, [=](auto load) __attribute__((always_inline)) {
        return S::fma((load(x) - centre) * scale, load(weight), load(bias));
      });
      a.mean[i] = mean;
      a.rstd[i] = rstd;
    }
  });
}

template <class T>
void layer_norm_backward(const LayerNormBackwardArgs<T>& a) {
  typedef Simd<T> S;
  typedef typename S::V V;
  parallel_rows(a.m, 2 * a.c, [&a](long first, long last) {
    const double inverse = 1.0 / static_cast<double>(a.c);
    for (long i = first; i < last; ++i) {
      const T *dy = a.dy + i * a.c, *x = a.x + i * a.c, *weight = a.weight;
      const V centre = S::set(a.mean[i]), scale = S::set(a.rstd[i]);
      const V mean_g = S::set(static_cast<T>(
          row_sum<T>(a.c, [=](auto load) __attribute__((always_inline)) { return load(dy) * load(weight); }) * inverse));
      const V mean_gx = S::set(static_cast<T>(row_sum<T>(a.c,
                                                         [=](auto load) __attribute__((always_inline)) {
                                                           return load(dy) * load(weight) * ((load(x) - centre) * scale);
                                                         }) *
                                              inverse));
      map_vectors<T>(0, a.c, a.dx + i * a.c, [=](auto load) __attribute__((always_inline)) {
        const V normal = (load(x) - centre) * scale;
        return scale * S::fma(-normal, mean_gx, load(dy) * load(weight) - mean_g);
      });
    }
  });
  // Rows in order, blocks of 512 added in order, one owner per strip of columns.
  const long strip = 64;
  parallel(ceil_div(a.c, strip), [&a](long s) {
    T block[2][strip], total[2][strip];
    const long first = s * strip, n = min_long(strip, a.c - first);
    for (long j = 0; j < n; ++j) total[0][j] = total[1][j] = T(0);
    for (long m0 = 0; m0 < a.m; m0 += kBlock) {
      for (long j = 0; j < n; ++j) block[0][j] = block[1][j] = T(0);
      for (long i = m0; i < min_long(a.m, m0 + kBlock); ++i) {
        const T *dy = a.dy + i * a.c + first, *x = a.x + i * a.c + first;
        const T mean = a.mean[i], rstd = a.rstd[i];
        for (long j = 0; j < n; ++j) {
          block[0][j] = block[0][j] + dy[j] * ((x[j] - mean) * rstd);
          block[1][j] = block[1][j] + dy[j];
        }
      }
      for (long j = 0; j < n; ++j) {
        total[0][j] = total[0][j] + block[0][j];
        total[1][j] = total[1][j] + block[1][j];
      }
    }
    for (long j = 0; j < n; ++j) {
      a.dweight[first + j] = total[0][j];
      a.dbias[first + j] = total[1][j];
    }
  });
}

template <class T>
void fill(Table<T>& table) {
  table.layer_norm = layer_norm<T>;
  table.layer_norm_backward = layer_norm_backward<T>;
}

}  // namespace

void fill_layer_norm(Kernels& kernels) {
  fill(kernels.f32);
  fill(kernels.f64);
}

}  // namespace RHEME_NS
}  // namespace rheme
