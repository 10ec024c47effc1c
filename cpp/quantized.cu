// Weights stored small: float16, widened exactly, or int8 with a scale to a row. What is here has the CPU's bits.
//
// int8: a row of x is rounded to int8 by a scale of its own, products are summed as integers, which is exact in any order, and
// one fused multiply-add goes back to float.
#include "device.h"

constexpr int kTile = 32;      // rows and columns of a block
constexpr int kThreads = 256;  // of a block; each makes 4 of the tile's elements

RHEME_FN float half_to_float(uint16_t h) {
  const uint32_t sign = uint32_t(h & 0x8000) << 16, exponent = h >> 10 & 31, fraction = h & 1023;
  if (exponent == 31) return __int_as_float(int32_t(sign | 0x7f800000u | fraction << 13));
  const float magnitude = exponent ? __int_as_float(int32_t((exponent + 112) << 23 | fraction << 13))
                                   : float(int32_t(fraction)) * 5.9604644775390625e-8f;
  return sign ? -magnitude : magnitude;
}

// weight (C, pitch), int8 with scale or float16 -> float32 rows `ids` of it, or all where that is null.
RHEME_FN float widened(const uint8_t* weight, const float* scale, int64_t at, int64_t row) {
  if (scale) return float(int32_t(reinterpret_cast<const signed char*>(weight)[at])) * scale[row];
  return half_to_float(reinterpret_cast<const uint16_t*>(weight)[at]);
}

extern "C" __global__ void unpack(int64_t m, int64_t k, int64_t pitch, int64_t v, const int64_t* ids, const uint8_t* weight,
                                  const float* scale, int64_t* fault, float* y) {
  RHEME_EACH(i, m * k) {
    const int64_t place = i / k, column = i % k, row = ids ? ids[place] : place;
    if (row < 0 || row >= v) {
      if (column == 0 &&
          atomicCAS(reinterpret_cast<unsigned long long*>(fault), 0ull, static_cast<unsigned long long>(place + 1)) == 0)
        fault[1] = row;
      y[i] = __builtin_nanf("");
      continue;
    }
    y[i] = widened(weight, scale, row * pitch + column, row);
  }
}

// Rows of x (M, K) as int8, four to a word, (M, words), and what one of them is worth. unit: 1 / 127 unless a row passes 1. A
// block takes a row.
extern "C" __global__ void quantize_rows(int64_t k, int64_t words, int64_t unit, const float* x, uint32_t* q, float* scale) {
  x += int64_t(blockIdx.x) * k;
  q += int64_t(blockIdx.x) * words;
  float most = 0.0f;
  int32_t odd = 0;
  RHEME_SHARE(i, k) {
    const float magnitude = x[i] < 0.0f ? -x[i] : x[i];
    most = Max::of(magnitude, most);
    odd |= !(magnitude - magnitude == 0.0f);
  }
  most = block_reduce<Max>(most, 0.0f);
  odd = block_reduce<Max>(odd, 0);
  const bool zero = most <= 1e-30f, small = unit && most <= 1.0f;
  const float inverse = zero || small ? 127.0f : 127.0f / most, worth = small ? 1.0f / 127.0f : zero ? 0.0f : most / 127.0f;
  if (threadIdx.x == 0) scale[blockIdx.x] = odd ? __builtin_nanf("") : worth;
  RHEME_SHARE(w, words) {
    uint32_t word = 0;
    for (int64_t i = 4 * w; i < 4 * w + 4; ++i) {
      const int32_t value = i < k && !odd ? int32_t(rintf(x[i] * inverse)) : 0;
      word |= (uint32_t(value) & 255u) << (8 * (i - 4 * w));
    }
    q[w] = word;
  }
}

// y (M, C) = start + x w, x (M, words) and w (C, words) four int8 to a word. start: bias (C,), or y itself, or nothing.
extern "C" __global__ void quantized_product(int64_t m, int64_t c, int64_t words, const uint32_t* x, const float* x_scale,
                                             const uint32_t* w, const float* w_scale, const float* bias, int64_t add,
                                             float* y) {
  __shared__ uint32_t x_tile[kTile][kTile + 1], w_tile[kTile][kTile + 1];
  const int64_t row0 = int64_t(blockIdx.x) * kTile, column0 = int64_t(blockIdx.y) * kTile;
  const int j = threadIdx.x % kTile, i0 = threadIdx.x / kTile;
  int32_t sum[4] = {0, 0, 0, 0};
  for (int64_t k0 = 0; k0 < words; k0 += kTile) {
    for (int e = threadIdx.x; e < kTile * kTile; e += kThreads) {
      const int r = e / kTile, k = e % kTile;
      x_tile[r][k] = row0 + r < m && k0 + k < words ? x[(row0 + r) * words + k0 + k] : 0u;
      w_tile[r][k] = column0 + r < c && k0 + k < words ? w[(column0 + r) * words + k0 + k] : 0u;
    }
    __syncthreads();
    for (int k = 0; k < kTile; ++k)
      for (int e = 0; e < 4; ++e) sum[e] = __dp4a(int32_t(x_tile[i0 + 8 * e][k]), int32_t(w_tile[j][k]), sum[e]);
    __syncthreads();
  }
  const int64_t column = column0 + j;
  for (int e = 0; e < 4; ++e) {
    const int64_t row = row0 + i0 + 8 * e;
    if (row >= m || column >= c) continue;
    float* out = y + row * c + column;
    const float start = add ? *out : bias ? bias[column] : 0.0f;
    *out = fmaf(float(sum[e]), x_scale[row] * w_scale[column], start);
  }
}
