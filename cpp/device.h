// What every CUDA kernel stands on: the traits that formulas.h asks for, scalar, and what the threads of a block do together.
//
// NVRTC compiles this text at run time, with no header of the toolkit, once per floating type: RHEME_FLOAT names it. Kernels
// take whole numbers as int64_t and real ones as double, as CuPy passes Python's. CuPy flushes denormal floats, always; what
// must equal the CPU to the last bit compares bit patterns or whole numbers. Nothing is contracted (-fmad=false): a fused
// multiply-add is written where it is meant. Sums run in an order that the shape alone decides; no atomic on a float.
#pragma once

#ifndef RHEME_EMULATED  // tests/emulated_cuda compiles the same text as C++, with names of its own for what follows
typedef unsigned char uint8_t;
typedef unsigned short uint16_t;
typedef int int32_t;
typedef unsigned int uint32_t;
typedef long long int64_t;
typedef unsigned long long uint64_t;
#define RHEME_FN static __device__ __forceinline__
#define __builtin_inff() __int_as_float(0x7f800000)
#define __builtin_nanf(text) __int_as_float(0x7fc00000)
#pragma nv_diag_suppress 161, 177  // formulas.h has GCC's pragmas, and no file uses all of its functions

// Shared memory of a block that may run beside others of its launch; plain __shared__ does where blocks do not meet.
#define RHEME_SHARED(type, name, count) __shared__ type name[count]

// Shared memory whose size the launch gives, 16-byte aligned.
template <class U>
RHEME_FN U* dynamic_shared() {
  extern __shared__ __align__(16) unsigned char rheme_dynamic_shared[];
  return reinterpret_cast<U*>(rheme_dynamic_shared);
}
#endif

#include "formulas.h"

typedef RHEME_FLOAT T;

template <class F>
struct Lane;

template <>
struct Lane<float> {
  typedef float V;
  typedef float Scalar;
  typedef int32_t I;
  typedef uint32_t Bits;
  RHEME_FN V set(float x) { return x; }
  RHEME_FN V fma(V a, V b, V c) { return fmaf(a, b, c); }
  RHEME_FN V select(I mask, V a, V b) { return mask ? a : b; }
  RHEME_FN V max(V a, V b) { return a > b ? a : b; }
  RHEME_FN V min(V a, V b) { return a < b ? a : b; }
  RHEME_FN V abs(V x) { return x < 0.0f ? -x : x; }
  RHEME_FN V sqrt(V x) { return sqrtf(x); }
  RHEME_FN V bits_to_float(I x) { return __int_as_float(x); }
  RHEME_FN I float_to_bits(V x) { return __float_as_int(x); }
  RHEME_FN I to_int(V x) { return static_cast<I>(x); }
  RHEME_FN V to_float(I x) { return static_cast<V>(x); }
  RHEME_FN V scale(V p, V n) { return scale_f32<Lane<float>>(p, n); }
  RHEME_FN V exp(V x) { return exp_f32<Lane<float>>(x); }
  RHEME_FN V log(V x) { return log_f32<Lane<float>>(x); }
  RHEME_FN V tanh(V x) { return tanh_f32<Lane<float>>(x); }
  RHEME_FN V sigmoid(V x) { return sigmoid_any<Lane<float>>(x); }
  RHEME_FN V sin_small(V x) { return sin_f32<Lane<float>>(x); }
  RHEME_FN V cos_small(V x) { return cos_f32<Lane<float>>(x); }
  RHEME_FN Bits bits(V x) { return static_cast<Bits>(__float_as_int(x)); }
  RHEME_FN V of_bits(Bits x) { return __int_as_float(static_cast<int32_t>(x)); }
};

// double serves gradient checks.
template <>
struct Lane<double> {
  typedef double V;
  typedef double Scalar;
  typedef int64_t I;
  typedef uint64_t Bits;
  RHEME_FN V set(double x) { return x; }
  RHEME_FN V fma(V a, V b, V c) { return ::fma(a, b, c); }
  RHEME_FN V select(I mask, V a, V b) { return mask ? a : b; }
  RHEME_FN V max(V a, V b) { return a > b ? a : b; }
  RHEME_FN V min(V a, V b) { return a < b ? a : b; }
  RHEME_FN V abs(V x) { return x < 0.0 ? -x : x; }
  RHEME_FN V sqrt(V x) { return ::sqrt(x); }
  RHEME_FN V exp(V x) { return ::exp(x); }
  RHEME_FN V log(V x) { return ::log(x); }
  RHEME_FN V tanh(V x) { return ::tanh(x); }
  RHEME_FN V sigmoid(V x) { return sigmoid_any<Lane<double>>(x); }
  RHEME_FN V sin_small(V x) { return ::sin(x); }
  RHEME_FN V cos_small(V x) { return ::cos(x); }
  RHEME_FN Bits bits(V x) { return static_cast<Bits>(__double_as_longlong(x)); }
  RHEME_FN V of_bits(Bits x) { return __longlong_as_double(static_cast<int64_t>(x)); }
};

typedef Lane<T> S;
typedef S::Bits Bits;

RHEME_FN T lowest() { return T(-__builtin_inff()); }

// What is taken off before exponentials: the largest element, or 0 where it is infinite: inf - inf is no number.
RHEME_FN T anchor_of(T top) { return top - top == T(0) ? top : T(0); }

// How many of `most` steps or keys a row has. The host has not seen lengths that were made on the device.
RHEME_FN int64_t length_of(const int64_t* lengths, int64_t row, int64_t most) {
  const int64_t length = lengths ? lengths[row] : most;
  return length < 0 ? 0 : length < most ? length : most;
}

// for (i: this thread's share of 0..n-1 of the whole grid)
#define RHEME_EACH(i, n) \
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x, step_ = int64_t(gridDim.x) * blockDim.x; i < (n); i += step_)
// for (i: this thread's share of 0..n-1 of its block)
#define RHEME_SHARE(i, n) for (int64_t i = threadIdx.x; i < (n); i += blockDim.x)

struct Add {
  template <class U>
  RHEME_FN U of(U a, U b) {
    return a + b;
  }
};
struct Max {
  template <class U>
  RHEME_FN U of(U a, U b) {
    return a > b ? a : b;
  }
};
struct Min {
  template <class U>
  RHEME_FN U of(U a, U b) {
    return a < b ? a : b;
  }
};

// The values of all threads of a block combined in a fixed tree, for every thread. blockDim.x: a multiple of 32, at most 1024.
template <class F, class U>
RHEME_FN U block_reduce(U value, U neutral) {
  RHEME_SHARED(U, partial, 32);
  const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  for (int width = 16; width; width /= 2) value = F::of(value, __shfl_xor_sync(0xffffffffu, value, width));
  __syncthreads();  // whoever still reads what the call before left
  if (lane == 0) partial[warp] = value;
  __syncthreads();
  value = lane < blockDim.x / 32 ? partial[lane] : neutral;
  for (int width = 16; width; width /= 2) value = F::of(value, __shfl_xor_sync(0xffffffffu, value, width));
  return value;
}

RHEME_FN double block_sum(double value) { return block_reduce<Add>(value, 0.0); }
RHEME_FN T block_max(T value) { return block_reduce<Max>(value, lowest()); }

// The sum of the values of the lanes up to this one.
RHEME_FN uint64_t warp_running_sum(uint64_t value) {
  const unsigned lane = threadIdx.x % 32;
  for (unsigned width = 1; width < 32; width *= 2) {
    const uint64_t before = __shfl_up_sync(0xffffffffu, value, width);
    if (lane >= width) value += before;
  }
  return value;
}

// The sum of the values of the threads before this one; `total` of all.
RHEME_FN uint64_t block_sum_before(uint64_t value, uint64_t& total) {
  RHEME_SHARED(uint64_t, partial, 32);
  const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  const uint64_t running = warp_running_sum(value);
  __syncthreads();
  if (lane == 31) partial[warp] = running;
  __syncthreads();
  const uint64_t of_warps = warp_running_sum(lane < warps ? partial[lane] : 0);
  total = __shfl_sync(0xffffffffu, of_warps, 31);
  const uint64_t before = __shfl_sync(0xffffffffu, of_warps, warp ? warp - 1 : 0);
  return running - value + (warp ? before : 0);
}

// The word `at` of a stream, counted from a position in it: four words to a counter.
RHEME_FN void philox_at(uint64_t seed, uint64_t stream, uint64_t counter, uint32_t* words) {
  words[0] = uint32_t(counter);
  words[1] = uint32_t(counter >> 32);
  words[2] = uint32_t(stream);
  words[3] = uint32_t(stream >> 32);
  philox4x32_10(words[0], words[1], words[2], words[3], uint32_t(seed), uint32_t(seed >> 32));
}
