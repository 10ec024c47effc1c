// Layer normalisation (Ba et al. 2016). A block takes a row.
#include "device.h"

extern "C" __global__ void layer_norm(int64_t c, const T* x, const T* weight, const T* bias, double epsilon, T* y, T* mean,
                                      T* rstd) {
  const int64_t at = int64_t(blockIdx.x) * c;
  double sum = 0;
  RHEME_SHARE(i, c) sum += double(x[at + i]);
  const T centre = T(block_sum(sum) / double(c));
  double squares = 0;
  RHEME_SHARE(i, c) {
    const T d = x[at + i] - centre;
    squares += double(d * d);
  }
  const T scale = T(1.0 / sqrt(block_sum(squares) / double(c) + double(T(epsilon))));
  RHEME_SHARE(i, c) y[at + i] = S::fma((x[at + i] - centre) * scale, weight[i], bias[i]);
  if (threadIdx.x) return;
  mean[blockIdx.x] = centre;
  rstd[blockIdx.x] = scale;
}

// products (M, C): dy times the normalised x, whose column sums are dweight.
extern "C" __global__ void layer_norm_backward(int64_t c, const T* dy, const T* x, const T* weight, const T* mean,
                                               const T* rstd, T* dx, T* products) {
  const int64_t at = int64_t(blockIdx.x) * c;
  const T centre = mean[blockIdx.x], scale = rstd[blockIdx.x];
  double g = 0, gx = 0;
  RHEME_SHARE(i, c) {
    const T normal = (x[at + i] - centre) * scale, d = dy[at + i] * weight[i];
    g += double(d);
    gx += double(d * normal);
    products[at + i] = dy[at + i] * normal;
  }
  const T mean_g = T(block_sum(g) / double(c)), mean_gx = T(block_sum(gx) / double(c));
  RHEME_SHARE(i, c) {
    const T normal = (x[at + i] - centre) * scale;
    dx[at + i] = scale * S::fma(-normal, mean_gx, dy[at + i] * weight[i] - mean_g);
  }
}
