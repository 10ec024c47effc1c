// Optimisers, each one pass over its arrays.
#include "device.h"

// Squares of x summed in double: block b of the grid takes 4096 elements at a time.
extern "C" __global__ void sum_of_squares(int64_t n, const T* x, double* partial) {
  double sum = 0;
  RHEME_EACH(i, n) sum += double(x[i] * x[i]);
  sum = block_sum(sum);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

// out (3,): the square root of the sum, and the fault that a kernel noted, its position one too high, which is cleared.
extern "C" __global__ void norm_and_fault(int64_t n, const double* partial, int64_t* fault, double* out) {
  double sum = 0;
  RHEME_SHARE(i, n) sum += partial[i];
  sum = block_sum(sum);
  if (threadIdx.x) return;
  out[0] = sqrt(sum);
  out[1] = double(fault[0]);
  out[2] = double(fault[1]);
  fault[0] = 0;
}

struct Adamw {
  T grad_scale, beta1, one_minus_beta1, beta2, one_minus_beta2, decay, step_size, root_correction, epsilon;
};

extern "C" __global__ void adamw(int64_t n, T* param, const T* grad, T* m, T* v, double grad_scale, double beta1, double beta2,
                                 double decay, double step_size, double root_correction, double epsilon) {
  const Adamw a = {T(grad_scale), T(beta1),     T(1 - beta1),       T(beta2),  T(1 - beta2),
                   T(decay),      T(step_size), T(root_correction), T(epsilon)};
  RHEME_EACH(i, n) {
    T p = param[i], first = m[i], second = v[i];
    adamw_update<S>(a, grad[i], p, first, second);
    param[i] = p;
    m[i] = first;
    v[i] = second;
  }
}

// Gradient with weight decay; with momentum the buffer becomes momentum * buffer + gradient, and is what is taken off.
extern "C" __global__ void sgd(int64_t n, T* param, const T* grad, T* momentum_buffer, double learning_rate, double momentum,
                               double weight_decay, double grad_scale) {
  const T scale = T(grad_scale), decay = T(weight_decay), rate = T(-learning_rate), keep = T(momentum);
  RHEME_EACH(i, n) {
    T step = S::fma(decay, param[i], grad[i] * scale);
    if (momentum_buffer) step = momentum_buffer[i] = S::fma(keep, momentum_buffer[i], step);
    param[i] = S::fma(rate, step, param[i]);
  }
}

// A chain of multiply-adds a thread, for the peak: 16 of them to an iteration.
extern "C" __global__ void fma_chain(int64_t iterations, double seed, T* y) {
  T a[8];
  for (int j = 0; j < 8; ++j) a[j] = T(seed) + T(j);
  for (int64_t i = 0; i < iterations; ++i)
    for (int j = 0; j < 8; ++j) {
      a[j] = S::fma(a[j], T(0.999), T(0.001));
      a[j] = S::fma(a[j], T(0.999), T(0.001));
    }
  T sum = T(0);
  for (int j = 0; j < 8; ++j) sum += a[j];
  y[int64_t(blockIdx.x) * blockDim.x + threadIdx.x] = sum;
}
