// Reductions over the middle axis of (A, K, C), masked.
//
// A block takes `width` columns (a power of two up to 32) of one of the A; its 256 threads stand 256 / width to a column, each
// with the elements that far apart, and end in one tree.
#include "device.h"

constexpr int kThreads = 256;

// Which column of which A, and which share of it.
struct Place {
  int64_t at, output, lane, lanes, stride, length;  // of the first element; of the column in y
  bool inside;
  RHEME_FN Place here(int64_t k, int64_t c, int64_t width) {
    const int64_t strips = (c + width - 1) / width, row = blockIdx.x / strips;
    const int64_t column = blockIdx.x % strips * width + threadIdx.x % width;
    return {row * k * c + column, row * c + column, threadIdx.x / width, kThreads / width, c, k, column < c};
  }
};

// f over the values of the threads of each column, for those of lane 0.
template <class F, class U>
RHEME_FN U column_reduce(U value, int64_t width) {
  __shared__ U partial[kThreads];
  __syncthreads();
  partial[threadIdx.x] = value;
  __syncthreads();
  for (int64_t half = kThreads / 2; half >= width; half /= 2) {
    if (threadIdx.x < half) partial[threadIdx.x] = F::of(partial[threadIdx.x], partial[threadIdx.x + half]);
    __syncthreads();
  }
  return partial[threadIdx.x % width];
}

#define RHEME_COLUMN(i)                                  \
  if (p.inside)                                          \
    for (int64_t i = p.lane; i < p.length; i += p.lanes) \
      if (!mask || mask[p.at + i * p.stride])

extern "C" __global__ void sum(int64_t k, int64_t c, int64_t width, const T* x, const uint8_t* mask, int64_t average, T* y) {
  const Place p = Place::here(k, c, width);
  double total = 0, count = 0;
  RHEME_COLUMN(i) {
    total += double(x[p.at + i * p.stride]);
    count += 1;
  }
  total = column_reduce<Add>(total, width);
  if (average) count = column_reduce<Add>(count, width);
  if (p.inside && p.lane == 0) y[p.output] = average ? (count > 0 ? T(total / count) : T(0)) : T(total);
}

extern "C" __global__ void logsumexp(int64_t k, int64_t c, int64_t width, const T* x, const uint8_t* mask, T* y) {
  const Place p = Place::here(k, c, width);
  T most = lowest();
  RHEME_COLUMN(i) most = S::max(x[p.at + i * p.stride], most);
  const T anchor = anchor_of(column_reduce<Max>(most, width));
  double total = 0;
  RHEME_COLUMN(i) total += double(S::exp(x[p.at + i * p.stride] - anchor));
  total = column_reduce<Add>(total, width);
  if (p.inside && p.lane == 0) y[p.output] = anchor + S::log(T(total));
}

// The first kept element stands until a larger one comes, so that a leading not-a-number stays and others are passed over.
struct Candidate {
  T value;
  int64_t position;  // -1: none
};
struct Better {
  RHEME_FN Candidate of(Candidate a, Candidate b) {
    if (a.position < 0 || b.position < 0) return a.position < 0 ? b : a;
    return b.value > a.value || (b.value == a.value && b.position < a.position) ? b : a;
  }
};

extern "C" __global__ void max_of_columns(int64_t k, int64_t c, int64_t width, const T* x, const uint8_t* mask, T* y,
                                          int64_t* positions) {
  const Place p = Place::here(k, c, width);
  const int64_t none = 0x7fffffffffffffffll;
  Candidate best = {lowest(), -1};
  int64_t first = none;
  RHEME_COLUMN(i) {
    const T value = x[p.at + i * p.stride];
    first = first < i ? first : i;
    if (value == value && (best.position < 0 || value > best.value)) best = {value, i};
  }
  first = column_reduce<Min>(first, width);
  best = column_reduce<Better>(best, width);
  if (!p.inside || p.lane) return;
  if (first < none && !(x[p.at + first * p.stride] == x[p.at + first * p.stride])) best = {x[p.at + first * p.stride], first};
  y[p.output] = best.value;
  positions[p.output] = best.position;
}
