// cuBLAS' gemm by plain loops, column-major, sums in double.
#include <stdint.h>

template <class T>
static void gemm(long ta, long tb, long m, long n, long k, const T* alpha, const T* a, long lda, const T* b, long ldb,
                 const T* beta, T* c, long ldc) {
  for (long j = 0; j < n; ++j)
    for (long i = 0; i < m; ++i) {
      double sum = 0;
      for (long l = 0; l < k; ++l)
        sum += double(ta ? a[l + i * lda] : a[i + l * lda]) * double(tb ? b[j + l * ldb] : b[l + j * ldb]);
      T& out = c[i + j * ldc];
      out = T(double(*alpha) * sum + (*beta != T(0) ? double(*beta) * double(out) : 0.0));
    }
}

extern "C" void gemm_f32(long ta, long tb, long m, long n, long k, const float* alpha, const float* a, long lda, long sa,
                         const float* b, long ldb, long sb, const float* beta, float* c, long ldc, long sc, long batch) {
  for (long i = 0; i < batch; ++i) gemm(ta, tb, m, n, k, alpha, a + i * sa, lda, b + i * sb, ldb, beta, c + i * sc, ldc);
}
extern "C" void gemm_f64(long ta, long tb, long m, long n, long k, const double* alpha, const double* a, long lda, long sa,
                         const double* b, long ldb, long sb, const double* beta, double* c, long ldc, long sc, long batch) {
  for (long i = 0; i < batch; ++i) gemm(ta, tb, m, n, k, alpha, a + i * sa, lda, b + i * sb, ldb, beta, c + i * sc, ldc);
}
