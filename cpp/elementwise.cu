// Elementwise ops and their gradients; dropout.
#include "device.h"

// b is (M, C), or one row, one column or one number that is repeated.
#define RHEME_BINARY(name, expression)                                                                                   \
  extern "C" __global__ void map_##name(int64_t m, int64_t c, const T* a, const T* b, int64_t b_rows, int64_t b_columns, \
                                        T* y) {                                                                          \
    RHEME_EACH(i, m * c) {                                                                                               \
      const int64_t at = b_rows ? (b_columns ? i : i / c) : (b_columns ? i % c : 0);                                     \
      const T u = a[i], v = b[at];                                                                                       \
      y[i] = expression;                                                                                                 \
    }                                                                                                                    \
  }
RHEME_BINARY(add, u + v)
RHEME_BINARY(sub, u - v)
RHEME_BINARY(mul, u* v)
RHEME_BINARY(div, u / v)

#define RHEME_UNARY(name, expression)                                  \
  extern "C" __global__ void map_##name(int64_t n, const T* x, T* y) { \
    RHEME_EACH(i, n) {                                                 \
      const T u = x[i];                                                \
      y[i] = expression;                                               \
    }                                                                  \
  }
RHEME_UNARY(neg, -u)
RHEME_UNARY(exp, S::exp(u))
RHEME_UNARY(log, S::log(u))
RHEME_UNARY(tanh, S::tanh(u))
RHEME_UNARY(sigmoid, S::sigmoid(u))
RHEME_UNARY(relu, u > T(0) ? u : T(0))

// `saved` is y, but for log x.
#define RHEME_BACKWARD(name, expression)                                                       \
  extern "C" __global__ void map_##name(int64_t n, const T* gradient, const T* saved, T* dx) { \
    RHEME_EACH(i, n) {                                                                         \
      const T dy = gradient[i], u = saved[i];                                                  \
      dx[i] = expression;                                                                      \
    }                                                                                          \
  }
RHEME_BACKWARD(exp_backward, dy* u)
RHEME_BACKWARD(log_backward, dy / u)
RHEME_BACKWARD(tanh_backward, dy* S::fma(-u, u, T(1)))
RHEME_BACKWARD(sigmoid_backward, dy * u * (T(1) - u))
RHEME_BACKWARD(relu_backward, u > T(0) ? dy : T(0))

// Four elements to a thread, as a Philox counter gives four words.
extern "C" __global__ void dropout(int64_t n, const T* x, int64_t threshold, double scale, uint64_t seed, uint64_t stream,
                                   int64_t period, T* y) {
  RHEME_EACH(group, (n + 3) / 4) {
    uint32_t words[4];
    int64_t drawn = -1;
    for (int64_t e = 4 * group; e < n && e < 4 * group + 4; ++e) {
      const int64_t at = period ? e % period : e;
      if (at / 4 != drawn) {
        drawn = at / 4;
        philox_at(seed, stream, uint64_t(drawn), words);
      }
      const int64_t which = at % 4;  // an index would put the words into memory
      const uint32_t word = which == 0 ? words[0] : which == 1 ? words[1] : which == 2 ? words[2] : words[3];
      y[e] = (word >> 8) >= uint32_t(threshold) ? x[e] * T(scale) : T(0);
    }
  }
}
