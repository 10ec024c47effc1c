// What products need beside cuBLAS: a bias on every row, and the sums of columns.
#include "device.h"

extern "C" __global__ void add_bias(int64_t m, int64_t c, const T* bias, T* y) {
  RHEME_EACH(i, m * c) y[i] = y[i] + bias[i % c];
}

// Sums of the columns of x (M, C) over rows [rows * blockIdx.y, ...): row blockIdx.y of y. 256 threads: 32 columns, 8 rows
// apart.
extern "C" __global__ void column_sums(int64_t m, int64_t c, int64_t rows, const T* x, T* y) {
  __shared__ double partial[8][32];
  const int64_t column = int64_t(blockIdx.x) * 32 + threadIdx.x % 32, lane = threadIdx.x / 32;
  const int64_t first = int64_t(blockIdx.y) * rows, last = m < first + rows ? m : first + rows;
  double sum = 0;
  if (column < c)
    for (int64_t i = first + lane; i < last; i += 8) sum += double(x[i * c + column]);
  partial[lane][threadIdx.x % 32] = sum;
  __syncthreads();
  if (lane || column >= c) return;
  for (int l = 1; l < 8; ++l) sum += partial[l][threadIdx.x];
  y[int64_t(blockIdx.y) * c + column] = T(sum);
}
