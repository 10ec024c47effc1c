// Dense products: linear, matmul. Compiled once per ISA.
#include "gemm.h"

#include <time.h>

namespace rheme {
namespace RHEME_NS {
namespace {

template <class T>
void pack_linear(const PackLinearArgs<T>& a) {
  pack_panels(a.weight, 1, a.k, a.k, a.c, a.panels);
}

template <class T>
void linear(const LinearArgs<T>& a) {
  if (!a.panels) {
    multiply(a.m, a.k, a.c, a.x, a.k, false, a.weight, a.k, true, a.y, a.c, a.bias, false);
    return;
  }
  const Product<T> product = {a.m, a.k, a.c, a.x, a.k, false, a.panels, a.y, a.c, a.bias, nullptr, false};
  product.run_parallel();
}

template <class T>
void linear_backward(const LinearBackwardArgs<T>& a) {
  if (a.dx) multiply<T>(a.m, a.c, a.k, a.dy, a.c, false, a.weight, a.k, false, a.dx, a.k, nullptr, false);
  if (a.dweight) multiply<T>(a.c, a.m, a.k, a.dy, a.c, true, a.x, a.k, false, a.dweight, a.k, nullptr, false);
  if (a.dbias) column_sums(a.m, a.c, a.dy, a.c, a.dbias);
}

template <class T>
void matmul(const MatmulArgs<T>& a) {
  const long a_row = a.transpose_a ? a.m : a.k, b_row = a.transpose_b ? a.k : a.c;
  if (a.batch == 1) {
    multiply<T>(a.m, a.k, a.c, a.a, a_row, a.transpose_a, a.b, b_row, a.transpose_b, a.y, a.c, nullptr, false);
    return;
  }
  parallel(a.batch, [&a, a_row, b_row](long i) {
    multiply_serial(a.m, a.k, a.c, a.a + i * a.m * a.k, a_row, a.transpose_a, a.b + i * a.k * a.c, b_row, a.transpose_b,
                    a.y + i * a.m * a.c, a.c, false);
  });
}

// 12 independent chains hide the latency of the multiply-add on two ports.
template <class T>
double fma_peak(long iterations) {
  typedef Simd<T> S;
  typename S::V acc[12];
  for (int i = 0; i < 12; ++i) acc[i] = S::set(T(i));
  const typename S::V b = S::set(T(0.999)), c = S::set(T(0.001));
  timespec start, end;
  clock_gettime(CLOCK_MONOTONIC, &start);
  for (long j = 0; j < iterations; ++j) {
#pragma GCC unroll 12
    for (int i = 0; i < 12; ++i) acc[i] = S::fma(acc[i], b, c);
  }
  clock_gettime(CLOCK_MONOTONIC, &end);
  volatile T sink = T(0);
  for (int i = 0; i < 12; ++i) sink = sink + acc[i][0];
  const double seconds = double(end.tv_sec - start.tv_sec) + 1e-9 * double(end.tv_nsec - start.tv_nsec);
  return double(iterations) * 12 * 2 * double(S::W) / seconds * 1e-9;
}

template <class T>
void fill(Table<T>& table) {
  table.pack_linear = pack_linear<T>;
  table.linear = linear<T>;
  table.linear_backward = linear_backward<T>;
  table.matmul = matmul<T>;
  table.fma_peak = fma_peak<T>;
}

}  // namespace

void fill_gemm(Kernels& kernels) {
  fill(kernels.f32);
  fill(kernels.f64);
}

}  // namespace RHEME_NS
}  // namespace rheme
