// Softmax cross-entropy on blocks of logits, which cuBLAS has made. A block of threads takes a row of logits.
#include "device.h"

// logits (rows, V) get the bias added, in place; row 0 is row `first` of the batch.
extern "C" __global__ void cross_entropy(int64_t v, int64_t first, T* logits, const T* bias, const int64_t* targets,
                                         int64_t ignore_index, double label_smoothing, int64_t* fault, T* loss, T* lse) {
  const int64_t m = first + blockIdx.x;
  T* row = logits + int64_t(blockIdx.x) * v;
  T most = lowest();
  double total = 0;
  RHEME_SHARE(i, v) {
    const T x = bias ? row[i] + bias[i] : row[i];
    if (bias) row[i] = x;
    most = S::max(x, most);
    total += double(x);
  }
  const T anchor = anchor_of(block_max(most));
  double sum = 0;
  RHEME_SHARE(i, v) sum += double(S::exp(row[i] - anchor));
  sum = block_sum(sum);
  const double mean = label_smoothing != 0 ? block_sum(total) / double(v) : 0;
  __syncthreads();  // the row is written by all threads, and read by one
  if (threadIdx.x) return;
  const double log_sum = double(anchor) + double(S::log(T(sum)));
  lse[m] = T(log_sum);
  const int64_t target = targets[m];
  if (target == ignore_index) {
    loss[m] = T(0);
  } else if (target < 0 || target >= v) {
    if (atomicCAS(reinterpret_cast<unsigned long long*>(fault), 0ull, static_cast<unsigned long long>(m + 1)) == 0)
      fault[1] = target;
    loss[m] = T(__builtin_nanf(""));
  } else {
    const double plain = log_sum - double(row[target]);
    loss[m] = T(label_smoothing != 0 ? (1 - label_smoothing) * plain + label_smoothing * (log_sum - mean) : plain);
  }
}

// The gradient of the logits, (rows, V), from those logits; `g` may be `logits`. `bias` is given where it isn't in them yet.
extern "C" __global__ void cross_entropy_backward(int64_t v, int64_t first, const T* logits, const T* bias,
                                                  const int64_t* targets, int64_t ignore_index, double label_smoothing,
                                                  const T* dloss, const T* lse, T* g) {
  const int64_t m = first + blockIdx.x, at = int64_t(blockIdx.x) * v, target = targets[m];
  const T share = T(label_smoothing / double(v)), hit = T(1 - label_smoothing), scale = dloss[m], log_sum = lse[m];
  RHEME_SHARE(i, v) {
    const T x = bias ? logits[at + i] + bias[i] : logits[at + i];
    const T p = S::exp(x - log_sum) - share;
    g[at + i] = target == ignore_index ? T(0) : (i == target ? p - hit : p) * scale;
  }
}
