// Softmax of attention's scores, rows cut at the lengths of their keys, and its gradient; the products are cuBLAS'. A block
// takes a row: batch row blockIdx.x / time.
#include "device.h"

extern "C" __global__ void attention_softmax(int64_t time, int64_t source, const int64_t* lengths, double scale, T* weights) {
  const int64_t n = blockIdx.x / time, live = length_of(lengths, n, source);
  T* row = weights + int64_t(blockIdx.x) * source;
  const T factor = T(scale);
  T most = lowest();
  RHEME_SHARE(s, live) most = S::max(row[s] * factor, most);
  const T anchor = anchor_of(block_max(most));
  double sum = 0;
  RHEME_SHARE(s, live) sum += double(S::exp(row[s] * factor - anchor));
  const T total = T(block_sum(sum));
  RHEME_SHARE(s, source) row[s] = s < live && total != T(0) ? S::exp(row[s] * factor - anchor) / total : T(0);
}

// dscores (N, T, S) holds the gradient of the weights, then that of the products of query and key.
extern "C" __global__ void attention_softmax_backward(int64_t source, const T* weights, const T* dweights, double scale,
                                                      T* dscores) {
  const int64_t at = int64_t(blockIdx.x) * source;
  const T factor = T(scale);
  double inner = 0;
  RHEME_SHARE(s, source) {
    T d = dscores[at + s];
    if (dweights) d = dscores[at + s] = d + dweights[at + s];
    inner += double(weights[at + s] * d);
  }
  const T sum = T(block_sum(inner));
  RHEME_SHARE(s, source) dscores[at + s] = weights[at + s] * (dscores[at + s] - sum) * factor;
}
