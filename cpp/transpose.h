// Packing a matrix that has to be turned: rows that lie along k become columns of a panel. Included by kernel files only.
//
// Blocks of 4 x 4 (2 x 2 doubles) are turned in 128-bit vectors, which every ISA has; 16 k at a time read whole cache lines.
// AVX-512 turns 16 x 16 floats at once, in a third of the time.
#pragma once

#include "simd.h"

namespace rheme {
namespace RHEME_NS {
namespace {

typedef float Quad __attribute__((vector_size(16)));
typedef double Pair __attribute__((vector_size(16)));
typedef float QuadUnaligned __attribute__((vector_size(16), aligned(4), may_alias));
typedef double PairUnaligned __attribute__((vector_size(16), aligned(8), may_alias));

// out[i * out_row + j] = source[j * row + i], i and j below 4.
RHEME_FN void transpose_block(const float* source, long row, float* out, long out_row) {
  const Quad a = *reinterpret_cast<const QuadUnaligned*>(source), b = *reinterpret_cast<const QuadUnaligned*>(source + row),
             c = *reinterpret_cast<const QuadUnaligned*>(source + 2 * row),
             d = *reinterpret_cast<const QuadUnaligned*>(source + 3 * row);
  const Quad ab0 = __builtin_shufflevector(a, b, 0, 4, 1, 5), ab1 = __builtin_shufflevector(a, b, 2, 6, 3, 7);
  const Quad cd0 = __builtin_shufflevector(c, d, 0, 4, 1, 5), cd1 = __builtin_shufflevector(c, d, 2, 6, 3, 7);
  *reinterpret_cast<QuadUnaligned*>(out) = __builtin_shufflevector(ab0, cd0, 0, 1, 4, 5);
  *reinterpret_cast<QuadUnaligned*>(out + out_row) = __builtin_shufflevector(ab0, cd0, 2, 3, 6, 7);
  *reinterpret_cast<QuadUnaligned*>(out + 2 * out_row) = __builtin_shufflevector(ab1, cd1, 0, 1, 4, 5);
  *reinterpret_cast<QuadUnaligned*>(out + 3 * out_row) = __builtin_shufflevector(ab1, cd1, 2, 3, 6, 7);
}
RHEME_FN void transpose_block(const double* source, long row, double* out, long out_row) {
#pragma GCC unroll 2
  for (int j = 0; j < 4; j += 2)
#pragma GCC unroll 2
    for (int i = 0; i < 4; i += 2) {
      const Pair a = *reinterpret_cast<const PairUnaligned*>(source + j * row + i),
                 b = *reinterpret_cast<const PairUnaligned*>(source + (j + 1) * row + i);
      *reinterpret_cast<PairUnaligned*>(out + i * out_row + j) = __builtin_shufflevector(a, b, 0, 2);
      *reinterpret_cast<PairUnaligned*>(out + (i + 1) * out_row + j) = __builtin_shufflevector(a, b, 1, 3);
    }
}

#if defined(__AVX512F__)
// The same of 16 x 16: loads put rows 4 apart side by side in a vector, so that only blocks of 4 x 4 within it are left to
// turn.
RHEME_FN void transpose_large_block(const float* source, long row, float* out, long out_row) {
  const auto quad = [](const float* from) __attribute__((always_inline)) { return _mm_loadu_ps(from); };
#pragma GCC unroll 4
  for (long i = 0; i < 16; i += 4) {
    __m512 v[4];
#pragma GCC unroll 4
    for (long j = 0; j < 4; ++j) {
      const float* from = source + j * row + i;
      v[j] = _mm512_castps128_ps512(quad(from));
      v[j] = _mm512_mask_broadcast_f32x4(v[j], 0x00f0, quad(from + 4 * row));
      v[j] = _mm512_mask_broadcast_f32x4(v[j], 0x0f00, quad(from + 8 * row));
      v[j] = _mm512_mask_broadcast_f32x4(v[j], 0xf000, quad(from + 12 * row));
    }
    const __m512d ab0 = (__m512d)_mm512_unpacklo_ps(v[0], v[1]), ab1 = (__m512d)_mm512_unpackhi_ps(v[0], v[1]),
                  cd0 = (__m512d)_mm512_unpacklo_ps(v[2], v[3]), cd1 = (__m512d)_mm512_unpackhi_ps(v[2], v[3]);
    _mm512_storeu_ps(out + i * out_row, (__m512)_mm512_unpacklo_pd(ab0, cd0));
    _mm512_storeu_ps(out + (i + 1) * out_row, (__m512)_mm512_unpackhi_pd(ab0, cd0));
    _mm512_storeu_ps(out + (i + 2) * out_row, (__m512)_mm512_unpacklo_pd(ab1, cd1));
    _mm512_storeu_ps(out + (i + 3) * out_row, (__m512)_mm512_unpackhi_pd(ab1, cd1));
  }
}
#endif

// out[i * out_row + j] = source[j * row + i] for i < k and j < columns; the columns up to `width` become zero.
template <class T>
static void transpose_into(const T* source, long row, long k, long columns, T* out, long out_row, long width) {
  for (long i0 = 0; i0 < k; i0 += 16) {
    const long i1 = i0 + 16 < k ? i0 + 16 : k;
    long j = 0;
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4)
      for (; i1 - i0 == 16 && j + 16 <= columns; j += 16)
        transpose_large_block(source + j * row + i0, row, out + i0 * out_row + j, out_row);
#endif
    for (; j + 4 <= columns; j += 4) {
      const T* from = source + j * row;
      T* to = out + j;
      long i = i0;
      for (; i + 4 <= i1; i += 4) transpose_block(from + i, row, to + i * out_row, out_row);
      for (; i < i1; ++i)
        for (long r = 0; r < 4; ++r) to[i * out_row + r] = from[r * row + i];
    }
    for (; j < columns; ++j)
      for (long i = i0; i < i1; ++i) out[i * out_row + j] = source[j * row + i];
    for (; j < width; ++j)
      for (long i = i0; i < i1; ++i) out[i * out_row + j] = T(0);
  }
}

}  // namespace
}  // namespace RHEME_NS
}  // namespace rheme
