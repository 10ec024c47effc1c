// softmax and log_softmax of rows, masked, and their gradients. A block takes a row.
#include "device.h"

RHEME_FN T kept(const T* x, const uint8_t* mask, int64_t i) { return mask && !mask[i] ? lowest() : x[i]; }

// The largest kept element of a row, not-a-numbers passed over, and the sum of exp(x - largest).
RHEME_FN double row_exp_sum(const T* x, const uint8_t* mask, int64_t c, T& top) {
  T most = lowest();
  RHEME_SHARE(i, c) most = S::max(kept(x, mask, i), most);
  top = block_max(most);
  const T anchor = anchor_of(top);
  double sum = 0;
  RHEME_SHARE(i, c) sum += double(S::exp(kept(x, mask, i) - anchor));
  return block_sum(sum);
}

extern "C" __global__ void softmax(int64_t c, const T* x, const uint8_t* mask, T* y) {
  const int64_t at = int64_t(blockIdx.x) * c;
  x += at;
  y += at;
  if (mask) mask += at;
  T top;
  const T sum = T(row_exp_sum(x, mask, c, top));
  // A row with nothing kept is all zeros; its sum is 0, or not a number where it holds such.
  RHEME_SHARE(i, c) y[i] = sum == T(0) ? T(0) : S::exp(kept(x, mask, i) - anchor_of(top)) / sum;
}

extern "C" __global__ void softmax_backward(int64_t c, const T* dy, const T* y, T* dx) {
  const int64_t at = int64_t(blockIdx.x) * c;
  double inner = 0;
  RHEME_SHARE(i, c) inner += double(y[at + i] * dy[at + i]);
  const T sum = T(block_sum(inner));
  RHEME_SHARE(i, c) dx[at + i] = y[at + i] * (dy[at + i] - sum);
}

extern "C" __global__ void log_softmax(int64_t c, const T* x, const uint8_t* mask, T* y) {
  const int64_t at = int64_t(blockIdx.x) * c;
  x += at;
  y += at;
  if (mask) mask += at;
  T top;
  const double sum = row_exp_sum(x, mask, c, top);
  const T anchor = anchor_of(top), log_sum = top == lowest() ? T(0) : S::log(T(sum));
  RHEME_SHARE(i, c) y[i] = kept(x, mask, i) - anchor - log_sum;
}

// An entry at -inf (hidden) neither gives nor gets a gradient.
extern "C" __global__ void log_softmax_backward(int64_t c, const T* dy, const T* y, T* dx) {
  const int64_t at = int64_t(blockIdx.x) * c;
  double total = 0;
  RHEME_SHARE(i, c) total += y[at + i] == lowest() ? 0.0 : double(dy[at + i]);
  const T sum = T(block_sum(total));
  RHEME_SHARE(i, c) {
    const T value = y[at + i];
    dx[at + i] = S::fma(-S::exp(value), sum, value == lowest() ? T(0) : dy[at + i]);
  }
}
