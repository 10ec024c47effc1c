// The vectors of the ISA being compiled, for float and double. Included by kernel files only: they are compiled once per ISA,
// with RHEME_NS naming the namespace (baseline, avx2, avx512, neon). Everything here has internal linkage, so that no object
// exports a weak symbol that the linker could take from a wider ISA. No STL, no <cmath>.
#pragma once

#include <stddef.h>
#include <stdint.h>

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#if defined(__AVX512F__)
#define RHEME_VECTOR_BYTES 64
#define RHEME_REGISTERS 32
#elif defined(__AVX2__)
#define RHEME_VECTOR_BYTES 32
#define RHEME_REGISTERS 16
#elif defined(__ARM_NEON)
#define RHEME_VECTOR_BYTES 16
#define RHEME_REGISTERS 32
#else
#define RHEME_VECTOR_BYTES 16
#define RHEME_REGISTERS 16
#endif

#define RHEME_FN static inline __attribute__((always_inline))

#include "formulas.h"

namespace rheme {
namespace RHEME_NS {
namespace {

// Loads and stores go through types of alignment 1 element that may alias: a memcpy into an array of vectors keeps GCC 12 from
// holding the array in registers (measured: three times slower).
template <class T>
struct Types;
template <>
struct Types<float> {
  typedef float Vector __attribute__((vector_size(RHEME_VECTOR_BYTES)));
  typedef float Unaligned __attribute__((vector_size(RHEME_VECTOR_BYTES), aligned(4), may_alias));
  typedef int32_t Int __attribute__((vector_size(RHEME_VECTOR_BYTES)));
};
template <>
struct Types<double> {
  typedef double Vector __attribute__((vector_size(RHEME_VECTOR_BYTES)));
  typedef double Unaligned __attribute__((vector_size(RHEME_VECTOR_BYTES), aligned(8), may_alias));
  typedef int64_t Int __attribute__((vector_size(RHEME_VECTOR_BYTES)));
};

RHEME_FN Types<float>::Vector fma_vector(Types<float>::Vector a, Types<float>::Vector b, Types<float>::Vector c) {
#if defined(__AVX512F__)
  return (Types<float>::Vector)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__)
  return (Types<float>::Vector)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__ARM_NEON)
  return (Types<float>::Vector)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
  return a * b + c;  // two roundings: the baseline has no fused multiply-add, and its bits differ from the others'
#endif
}
RHEME_FN Types<double>::Vector fma_vector(Types<double>::Vector a, Types<double>::Vector b, Types<double>::Vector c) {
#if defined(__AVX512F__)
  return (Types<double>::Vector)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
#elif defined(__AVX2__)
  return (Types<double>::Vector)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
#elif defined(__ARM_NEON)
  return (Types<double>::Vector)vfmaq_f64((float64x2_t)c, (float64x2_t)a, (float64x2_t)b);
#else
  return a * b + c;
#endif
}

// The first n elements of a vector, n <= 0 none; the others read as those of `fill` and are not written.
#if defined(__AVX512F__)
RHEME_FN unsigned head_mask(long n, long width) { return n <= 0 ? 0u : n >= width ? (1u << width) - 1 : (1u << n) - 1; }
RHEME_FN Types<float>::Vector load_vector_part(const float* p, long n, Types<float>::Vector fill) {
  return (Types<float>::Vector)_mm512_mask_loadu_ps((__m512)fill, static_cast<__mmask16>(head_mask(n, 16)), p);
}
RHEME_FN Types<double>::Vector load_vector_part(const double* p, long n, Types<double>::Vector fill) {
  return (Types<double>::Vector)_mm512_mask_loadu_pd((__m512d)fill, static_cast<__mmask8>(head_mask(n, 8)), p);
}
RHEME_FN void store_vector_part(float* p, Types<float>::Vector x, long n) {
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>(head_mask(n, 16)), (__m512)x);
}
RHEME_FN void store_vector_part(double* p, Types<double>::Vector x, long n) {
  _mm512_mask_storeu_pd(p, static_cast<__mmask8>(head_mask(n, 8)), (__m512d)x);
}
#elif defined(__AVX2__)
RHEME_FN Types<float>::Int head_mask(long n, Types<float>::Int) {
  return (Types<float>::Int{} + static_cast<int32_t>(n < 0 ? 0 : n > 8 ? 8 : n)) > Types<float>::Int{0, 1, 2, 3, 4, 5, 6, 7};
}
RHEME_FN Types<double>::Int head_mask(long n, Types<double>::Int) {
  return (Types<double>::Int{} + static_cast<int64_t>(n)) > Types<double>::Int{0, 1, 2, 3};
}
RHEME_FN Types<float>::Vector load_vector_part(const float* p, long n, Types<float>::Vector fill) {
  const Types<float>::Int mask = head_mask(n, Types<float>::Int{});
  return mask ? (Types<float>::Vector)_mm256_maskload_ps(p, (__m256i)mask) : fill;
}
RHEME_FN Types<double>::Vector load_vector_part(const double* p, long n, Types<double>::Vector fill) {
  const Types<double>::Int mask = head_mask(n, Types<double>::Int{});
  return mask ? (Types<double>::Vector)_mm256_maskload_pd(p, (__m256i)mask) : fill;
}
RHEME_FN void store_vector_part(float* p, Types<float>::Vector x, long n) {
  _mm256_maskstore_ps(p, (__m256i)head_mask(n, Types<float>::Int{}), (__m256)x);
}
RHEME_FN void store_vector_part(double* p, Types<double>::Vector x, long n) {
  _mm256_maskstore_pd(p, (__m256i)head_mask(n, Types<double>::Int{}), (__m256d)x);
}
#else
template <class T, class V>
RHEME_FN V load_vector_part(const T* p, long n, V fill) {
  for (long i = 0; i < static_cast<long>(sizeof(V) / sizeof(T)); ++i)
    if (i < n) fill[i] = p[i];
  return fill;
}
template <class T, class V>
RHEME_FN void store_vector_part(T* p, V x, long n) {
  for (long i = 0; i < static_cast<long>(sizeof(V) / sizeof(T)); ++i)
    if (i < n) p[i] = x[i];
}
#endif

// A store past the caches, for results that outgrow them: the line is not read first. p is aligned to a vector; `fence_streams`
// makes them seen by whoever runs after this task.
#if defined(__AVX512F__)
RHEME_FN void stream_vector(float* p, Types<float>::Vector x) { _mm512_stream_ps(p, (__m512)x); }
RHEME_FN void stream_vector(double* p, Types<double>::Vector x) { _mm512_stream_pd(p, (__m512d)x); }
RHEME_FN void fence_streams() { _mm_sfence(); }
#elif defined(__AVX2__)
RHEME_FN void stream_vector(float* p, Types<float>::Vector x) { _mm256_stream_ps(p, (__m256)x); }
RHEME_FN void stream_vector(double* p, Types<double>::Vector x) { _mm256_stream_pd(p, (__m256d)x); }
RHEME_FN void fence_streams() { _mm_sfence(); }
#else
template <class T, class V>
RHEME_FN void stream_vector(T* p, V x) {
  *reinterpret_cast<typename Types<T>::Unaligned*>(p) = x;
}
RHEME_FN void fence_streams() {}
#endif

// Compare and select, which is just what x86's instructions for them do.
#if defined(__AVX512F__)
RHEME_FN Types<float>::Vector max_vector(Types<float>::Vector a, Types<float>::Vector b) {
  return (Types<float>::Vector)_mm512_max_ps((__m512)a, (__m512)b);
}
RHEME_FN Types<float>::Vector min_vector(Types<float>::Vector a, Types<float>::Vector b) {
  return (Types<float>::Vector)_mm512_min_ps((__m512)a, (__m512)b);
}
#elif defined(__AVX2__)
RHEME_FN Types<float>::Vector max_vector(Types<float>::Vector a, Types<float>::Vector b) {
  return (Types<float>::Vector)_mm256_max_ps((__m256)a, (__m256)b);
}
RHEME_FN Types<float>::Vector min_vector(Types<float>::Vector a, Types<float>::Vector b) {
  return (Types<float>::Vector)_mm256_min_ps((__m256)a, (__m256)b);
}
#else
RHEME_FN Types<float>::Vector max_vector(Types<float>::Vector a, Types<float>::Vector b) { return a > b ? a : b; }
RHEME_FN Types<float>::Vector min_vector(Types<float>::Vector a, Types<float>::Vector b) { return a < b ? a : b; }
#endif
RHEME_FN Types<double>::Vector max_vector(Types<double>::Vector a, Types<double>::Vector b) { return a > b ? a : b; }
RHEME_FN Types<double>::Vector min_vector(Types<double>::Vector a, Types<double>::Vector b) { return a < b ? a : b; }

// The square root is rounded correctly everywhere.
RHEME_FN Types<float>::Vector sqrt_vector(Types<float>::Vector x) {
#if defined(__AVX512F__)
  return (Types<float>::Vector)_mm512_maskz_sqrt_ps(0xffff, (__m512)x);
#elif defined(__AVX2__)
  return (Types<float>::Vector)_mm256_sqrt_ps((__m256)x);
#elif defined(__ARM_NEON)
  return (Types<float>::Vector)vsqrtq_f32((float32x4_t)x);
#else
  for (long i = 0; i < static_cast<long>(sizeof x / sizeof(float)); ++i) x[i] = __builtin_sqrtf(x[i]);
  return x;
#endif
}
RHEME_FN Types<double>::Vector sqrt_vector(Types<double>::Vector x) {
#if defined(__AVX512F__)
  return (Types<double>::Vector)_mm512_maskz_sqrt_pd(0xff, (__m512d)x);
#elif defined(__AVX2__)
  return (Types<double>::Vector)_mm256_sqrt_pd((__m256d)x);
#elif defined(__ARM_NEON)
  return (Types<double>::Vector)vsqrtq_f64((float64x2_t)x);
#else
  for (long i = 0; i < static_cast<long>(sizeof x / sizeof(double)); ++i) x[i] = __builtin_sqrt(x[i]);
  return x;
#endif
}

// The part of the traits that float and double share. S::V is the vector, S::I its integer twin (also the type of comparisons).
template <class T>
struct Common {
  typedef T Scalar;
  typedef typename Types<T>::Vector V;
  typedef typename Types<T>::Int I;
  static constexpr long W = RHEME_VECTOR_BYTES / sizeof(T);

  RHEME_FN V set(T x) { return x - V{}; }  // x - 0 is x, bit for bit, so this is a bare broadcast; 0 + x would add
  RHEME_FN V load(const T* p) { return *reinterpret_cast<const typename Types<T>::Unaligned*>(p); }
  RHEME_FN void store(T* p, V x) { *reinterpret_cast<typename Types<T>::Unaligned*>(p) = x; }
  RHEME_FN void stream(T* p, V x) { stream_vector(p, x); }
  // The first n < W elements; the others read as `fill` and are not written.
  RHEME_FN V load_part(const T* p, long n, T fill = T(0)) { return load_vector_part(p, n, set(fill)); }
  RHEME_FN void store_part(T* p, V x, long n) { store_vector_part(p, x, n); }
  RHEME_FN V fma(V a, V b, V c) { return fma_vector(a, b, c); }
  RHEME_FN V select(I mask, V a, V b) { return mask ? a : b; }
  RHEME_FN V max(V a, V b) { return max_vector(a, b); }  // a > b ? a : b, so that NaN and -0 come out the same on every ISA
  RHEME_FN V min(V a, V b) { return min_vector(a, b); }  // a < b ? a : b
  RHEME_FN V abs(V x) { return x < T(0) ? -x : x; }
  RHEME_FN V sqrt(V x) { return sqrt_vector(x); }
};

template <class T>
struct Simd;

template <>
struct Simd<float> : Common<float> {
  RHEME_FN V bits_to_float(I x) { return (V)x; }
  RHEME_FN I float_to_bits(V x) { return (I)x; }
  RHEME_FN I to_int(V x) { return __builtin_convertvector(x, I); }  // exact values only
  RHEME_FN V to_float(I x) { return __builtin_convertvector(x, V); }
  RHEME_FN V scale(V p, V n) {
#if defined(__AVX512F__)
    return (V)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
    return scale_f32<Simd<float>>(p, n);
#endif
  }
  RHEME_FN V exp(V x) { return exp_f32<Simd<float>>(x); }
  RHEME_FN V log(V x) { return log_f32<Simd<float>>(x); }
  RHEME_FN V tanh(V x) { return tanh_f32<Simd<float>>(x); }
  RHEME_FN V sigmoid(V x) { return sigmoid_any<Simd<float>>(x); }
  RHEME_FN V sin_small(V x) { return sin_f32<Simd<float>>(x); }  // |x| <= pi / 4
  RHEME_FN V cos_small(V x) { return cos_f32<Simd<float>>(x); }
};

// double serves gradient checks: libm, lane by lane.
template <>
struct Simd<double> : Common<double> {
#define RHEME_LANES(name, call)                     \
  RHEME_FN V name(V x) {                            \
    V y = x;                                        \
    for (long i = 0; i < W; ++i) y[i] = call(x[i]); \
    return y;                                       \
  }
  RHEME_LANES(exp, __builtin_exp)
  RHEME_LANES(log, __builtin_log)
  RHEME_LANES(tanh, __builtin_tanh)
  RHEME_LANES(sin_small, __builtin_sin)
  RHEME_LANES(cos_small, __builtin_cos)
#undef RHEME_LANES
  RHEME_FN V sigmoid(V x) { return sigmoid_any<Simd<double>>(x); }
};

// Reductions run over 16 virtual lanes on every ISA and end in one fixed tree, so that a sum has the same bits everywhere.
constexpr long kLanes = 16;

template <class T>
struct Lanes {
  typedef Simd<T> S;
  typedef typename S::V V;
  static constexpr long N = kLanes / S::W;
  V v[N];

  RHEME_FN void store(T* p, Lanes x) {
    for (long i = 0; i < N; ++i) S::store(p + i * S::W, x.v[i]);
  }
  RHEME_FN T sum(Lanes x) {
    T l[kLanes];
    store(l, x);
    for (long width = kLanes / 2; width >= 1; width /= 2)
      for (long i = 0; i < width; ++i) l[i] = l[i] + l[i + width];
    return l[0];
  }
};

}  // namespace
}  // namespace RHEME_NS
}  // namespace rheme
