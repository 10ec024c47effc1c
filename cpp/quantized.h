// Products with weights that are stored small: float16 or int8, in the panels of 64 columns of gemm.h. Included by kernel files
// only; internal linkage throughout.
//
// float16 is widened as it is read and multiplied as float32 is, so it has the bits that the same weights have in float32.
// int8: a row of x is rounded to int8 by a scale of its own, products are summed as integers, which is exact in any order, and
// one fused multiply-add per element goes back to float. So the bits depend on the row and the column alone, and are the same
// on every ISA, whatever its instruction for int8 is:
//   RHEME_DOT_U8  vpdpbusd takes unsigned x: 128 is added to it, and 128 times the column's sum taken off again
//   RHEME_DOT_S8  sdot (64-bit Arm)
//   RHEME_PAIRS   pmaddwd on x and w widened to int16; pmaddubsw would saturate
//   else          plain int32
#pragma once

#include "gemm.h"

#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
#define RHEME_DOT_U8 "vpdpbusd"
#elif defined(__ARM_FEATURE_DOTPROD)
#define RHEME_DOT_S8 "sdot"
#elif defined(__SSE2__)
#define RHEME_PAIRS "pmaddwd"
#include <immintrin.h>
#endif

namespace rheme {
namespace RHEME_NS {
namespace {

// The weights of one panel.
struct Panel {
  long k;
  const void* data;
  const float* scale;
  const int32_t* offsets;
};

static inline Panel panel_of(const QuantizedMatrix& m, long p) {
  const long bytes = m.half ? m.k * kPanel * 2 : ceil_div(m.k, 4) * 4 * kPanel;
  return {m.k, static_cast<const char*>(m.panels) + p * bytes, m.half ? nullptr : m.scale + p * kPanel,
          m.half ? nullptr : m.offsets + p * kPanel};
}

// float16 ---------------------------------------------------------------------------------------------------------------------

RHEME_FN Types<float>::Vector load_half(const uint16_t* p) {
#if defined(__AVX512F__)
  return (Types<float>::Vector)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i_u*>(p)));
#elif defined(__F16C__)
  return (Types<float>::Vector)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i_u*>(p)));
#elif defined(__ARM_NEON)
  return (Types<float>::Vector)vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)));
#else
  Types<float>::Int bits;
  for (long i = 0; i < Simd<float>::W; ++i) bits[i] = p[i];
  const Types<float>::Int sign = (bits & 0x8000) << 16, magnitude = (bits & 0x7fff) << 13;
  const Types<float>::Vector finite = (Types<float>::Vector)magnitude * 5.192296858534828e33f;  // 2^112: exact, denormals too
  const Types<float>::Int special = magnitude >= 0x0f800000;                                    // infinite or not a number
  return (Types<float>::Vector)((special ? magnitude | 0x7f800000 : (Types<float>::Int)finite) | sign);
#endif
}

// How the rows of x meet the weights: `prepare` writes a row of x in the form that `tile` reads (or there is no such form: then
// the row itself is read), and tile computes start + x w for some rows and the 64 columns of a panel.
struct Half {
  typedef float Element;
  static constexpr bool kCopies = false;
  static long pitch(long k) { return k; }
  static float prepare(const float*, long, Element*) { return 1.0f; }
  static float prepare_state(const float*, long, Element*) { return 1.0f; }
  static void prepare_unit(const float*, Element*) {}

  template <int MR, int NV>
  RHEME_FN void tile(const Element* const* a, const float*, const Panel& panel, const float* const* start, float* const* out,
                     long column) {
    typedef Simd<float> S;
    typedef typename S::V V;
    const uint16_t* w = static_cast<const uint16_t*>(panel.data) + column;
    for (long k0 = 0; k0 < panel.k || k0 == 0; k0 += kBlock) {
      const long k1 = min_long(panel.k, k0 + kBlock);
      V acc[MR][NV];
#pragma GCC unroll 8
      for (int r = 0; r < MR; ++r)
#pragma GCC unroll 8
        for (int j = 0; j < NV; ++j) acc[r][j] = S::set(0.0f);
      for (long i = k0; i < k1; ++i) {
        V b[NV];
#pragma GCC unroll 8
        for (int j = 0; j < NV; ++j) b[j] = load_half(w + i * kPanel + j * S::W);
#pragma GCC unroll 8
        for (int r = 0; r < MR; ++r) {
          const V x = S::set(a[r][i]);
#pragma GCC unroll 8
          for (int j = 0; j < NV; ++j) acc[r][j] = S::fma(x, b[j], acc[r][j]);
        }
      }
#pragma GCC unroll 8
      for (int r = 0; r < MR; ++r)
#pragma GCC unroll 8
        for (int j = 0; j < NV; ++j)
          S::store(out[r] + column + j * S::W, S::load((k0 ? out[r] : start[r]) + column + j * S::W) + acc[r][j]);
    }
  }
};

// int8 ------------------------------------------------------------------------------------------------------------------------

// How a value of x is stored, and what one instruction does for W columns and 4 k. In `pairs`, k stands as 0 2 1 3.
#if defined(RHEME_DOT_U8)
typedef uint8_t Int8Element;
#elif defined(RHEME_DOT_S8)
typedef int8_t Int8Element;
#elif defined(RHEME_PAIRS)
typedef int16_t Int8Element;
#else
typedef int32_t Int8Element;
#endif

typedef Types<float>::Int Ints;
typedef int32_t UnalignedInts __attribute__((vector_size(RHEME_VECTOR_BYTES), aligned(1), may_alias));
typedef int32_t UnalignedInt __attribute__((aligned(1), may_alias));

RHEME_FN Ints broadcast(int32_t x) { return x - Ints{}; }
RHEME_FN Ints load_ints(const void* p) { return *static_cast<const UnalignedInts*>(p); }

// W columns of 4 k, ready to be multiplied.
struct Quads {
#if defined(RHEME_DOT_U8) || defined(RHEME_DOT_S8)
  Ints w;
  RHEME_FN Quads load(const int8_t* p) { return {load_ints(p)}; }
#elif defined(RHEME_PAIRS)
  typedef int16_t Shorts __attribute__((vector_size(RHEME_VECTOR_BYTES)));
  Shorts even, odd;
  RHEME_FN Quads load(const int8_t* p) {
    const Shorts both = (Shorts)load_ints(p);
    return {(Shorts)(both << 8) >> 8, both >> 8};
  }
#else
  Ints w[4];
  RHEME_FN Quads load(const int8_t* p) {
    const Ints all = load_ints(p);
    return {{(all << 24) >> 24, (all << 16) >> 24, (all << 8) >> 24, all >> 24}};
  }
#endif
};

// acc + the dot products of 4 k of a row of x with W columns.
RHEME_FN Ints dot(Ints acc, const Int8Element* x, const Quads& q) {
#if defined(RHEME_DOT_U8) || defined(RHEME_DOT_S8)
  const Ints a = broadcast(*reinterpret_cast<const UnalignedInt*>(x));
#if defined(__AVX512VNNI__)
  return (Ints)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)a, (__m512i)q.w);
#elif defined(__AVXVNNI__)
  return (Ints)_mm256_dpbusd_avx_epi32((__m256i)acc, (__m256i)a, (__m256i)q.w);
#else
  return (Ints)vdotq_s32((int32x4_t)acc, (int8x16_t)a, (int8x16_t)q.w);
#endif
#elif defined(RHEME_PAIRS)
  const Ints even = broadcast(*reinterpret_cast<const UnalignedInt*>(x)),
             odd = broadcast(*reinterpret_cast<const UnalignedInt*>(x + 2));
#if defined(__AVX512F__)
  return acc + (Ints)_mm512_madd_epi16((__m512i)even, (__m512i)q.even) + (Ints)_mm512_madd_epi16((__m512i)odd, (__m512i)q.odd);
#elif defined(__AVX2__)
  return acc + (Ints)_mm256_madd_epi16((__m256i)even, (__m256i)q.even) + (Ints)_mm256_madd_epi16((__m256i)odd, (__m256i)q.odd);
#else
  return acc + (Ints)_mm_madd_epi16((__m128i)even, (__m128i)q.even) + (Ints)_mm_madd_epi16((__m128i)odd, (__m128i)q.odd);
#endif
#else
  acc = acc + q.w[0] * x[0];
  acc = acc + q.w[1] * x[1];
  acc = acc + q.w[2] * x[2];
  return acc + q.w[3] * x[3];
#endif
}

struct Int8 {
  typedef Int8Element Element;
  typedef Simd<float> S;
  typedef S::V V;
  static constexpr bool kCopies = true;
  static constexpr float kMost = 127.0f;
  static long pitch(long k) { return ceil_div(k, 64) * 64; }

  // x rounded to int8, 127 for its largest magnitude; returns what one unit of it is worth. A row that holds an infinity or
  // something that is not a number is worth NaN.
  static float prepare(const float* x, long n, Element* out) {
    V most = S::set(0.0f), odd = S::set(0.0f);
    for (long i = 0; i < n; i += S::W) {
      const V v = i + S::W <= n ? S::load(x + i) : S::load_part(x + i, n - i);
      most = S::max(S::abs(v), most);
      odd = odd + (v - v);
    }
    float largest = 0.0f, sum = 0.0f;
    for (long i = 0; i < S::W; ++i) {
      largest = most[i] > largest ? most[i] : largest;
      sum = sum + odd[i];
    }
    const float inverse = largest > 1e-30f ? kMost / largest : 0.0f;
    round(x, n, inverse, out);
    return sum == sum ? inverse > 0.0f ? largest / kMost : 0.0f : __builtin_nanf("");
  }

  // The same for a state h, which is in [-1, 1] but where a caller made it up.
  static float prepare_state(const float* h, long n, Element* out) {
    const float scale = prepare(h, n, out);
    if (!(scale * kMost <= 1.0f)) return scale;
    round(h, n, kMost, out);
    return 1.0f / kMost;
  }

  // 16 values in [-1, 1], of which one unit is worth 1 / 127.
  static void prepare_unit(const float* x, Element* out) { round(x, 16, kMost, out); }

  template <int MR, int NV>
  RHEME_FN void tile(const Element* const* a, const float* row_scale, const Panel& panel, const float* const* start,
                     float* const* out, long column) {
    // A single row waits for its weights: those of the next panel are asked for while this one ends.
    constexpr long kAhead = 16;         // quads
    constexpr int U = MR == 1 ? 2 : 1;  // chains enough to hide the latency of an addition
    const long quads = ceil_div(panel.k, 4);
    const int8_t* w = static_cast<const int8_t*>(panel.data) + column * 4;
    Ints acc[U][MR][NV];
#pragma GCC unroll 8
    for (int r = 0; r < MR; ++r)
#pragma GCC unroll 8
      for (int j = 0; j < NV; ++j) {
#if defined(RHEME_DOT_U8)
        acc[0][r][j] = load_ints(panel.offsets + column + j * S::W);
#else
        acc[0][r][j] = broadcast(0);
#endif
        if (U == 2) acc[U - 1][r][j] = broadcast(0);
      }
    long i = 0;
    for (; i + U <= quads; i += U) {
#pragma GCC unroll 2
      for (int u = 0; u < U; ++u) {
        if (MR == 1)
          for (long line = 0; line < NV * S::W * 4; line += 64) __builtin_prefetch(w + (i + u + kAhead) * kPanel * 4 + line);
        Quads q[NV];
#pragma GCC unroll 8
        for (int j = 0; j < NV; ++j) q[j] = Quads::load(w + ((i + u) * kPanel + j * S::W) * 4);
#pragma GCC unroll 8
        for (int r = 0; r < MR; ++r)
#pragma GCC unroll 8
          for (int j = 0; j < NV; ++j) acc[u][r][j] = dot(acc[u][r][j], a[r] + (i + u) * 4, q[j]);
      }
    }
    for (; i < quads; ++i)
#pragma GCC unroll 8
      for (int j = 0; j < NV; ++j) {
        const Quads q = Quads::load(w + (i * kPanel + j * S::W) * 4);
#pragma GCC unroll 8
        for (int r = 0; r < MR; ++r) acc[0][r][j] = dot(acc[0][r][j], a[r] + i * 4, q);
      }
#pragma GCC unroll 8
    for (int r = 0; r < MR; ++r)
#pragma GCC unroll 8
      for (int j = 0; j < NV; ++j) {
        const long at = column + j * S::W;
        const Ints sum = U == 2 ? acc[0][r][j] + acc[U - 1][r][j] : acc[0][r][j];
        const V scale = S::set(row_scale[r]) * S::load(panel.scale + at);
        S::store(out[r] + at, S::fma(S::to_float(sum), scale, S::load(start[r] + at)));
      }
  }

 private:
  static void round(const float* x, long n, float inverse, Element* out) {
    const V magic = S::set(12582912.0f);  // 1.5 * 2^23: adding it rounds to the nearest integer, even among equals
    for (long i = 0; i < n; i += S::W) {
      const V v = (i + S::W <= n ? S::load(x + i) : S::load_part(x + i, n - i)) * S::set(inverse);
      const V clamped = S::min(S::max(v, S::set(-kMost)), S::set(kMost));
      const Ints q = S::float_to_bits(clamped + magic) - 0x4b400000;
#if defined(RHEME_DOT_U8) && defined(__AVX512F__)
      _mm_storeu_si128(reinterpret_cast<__m128i_u*>(out + i), _mm512_cvtepi32_epi8((__m512i)(q + 128)));
#elif defined(RHEME_DOT_U8) || defined(RHEME_DOT_S8)
      typedef Int8Element Narrow __attribute__((vector_size(RHEME_VECTOR_BYTES / 4)));
      typedef Int8Element UnalignedNarrow __attribute__((vector_size(RHEME_VECTOR_BYTES / 4), aligned(1), may_alias));
      *reinterpret_cast<UnalignedNarrow*>(out + i) = __builtin_convertvector(Int8Element(-1) > 0 ? q + 128 : q, Narrow);
#elif defined(RHEME_PAIRS)
      for (long j = 0; j < S::W; j += 4) {
        out[i + j] = static_cast<Element>(q[j]);
        out[i + j + 1] = static_cast<Element>(q[j + 2]);
        out[i + j + 2] = static_cast<Element>(q[j + 1]);
        out[i + j + 3] = static_cast<Element>(q[j + 3]);
      }
#else
      *reinterpret_cast<UnalignedInts*>(out + i) = q;
#endif
    }
  }
};

// start + x w for up to 6 rows and the 64 columns of a panel.
template <class P, int MR>
static void tile_panel(const typename P::Element* const* a, const float* row_scale, const Panel& panel,
                       const float* const* start, float* const* out) {
  constexpr int NV = RHEME_REGISTERS == 32 ? 4 : 2;
  for (long column = 0; column < kPanel; column += NV * Simd<float>::W)
    P::template tile<MR, NV>(a, row_scale, panel, start, out, column);
}

template <class P>
static void tile_rows(long rows, const typename P::Element* const* a, const float* row_scale, const Panel& panel,
                      const float* const* start, float* const* out) {
  switch (rows) {
    case 1:
      return tile_panel<P, 1>(a, row_scale, panel, start, out);
    case 2:
      return tile_panel<P, 2>(a, row_scale, panel, start, out);
    case 3:
      return tile_panel<P, 3>(a, row_scale, panel, start, out);
    case 4:
      return tile_panel<P, 4>(a, row_scale, panel, start, out);
    case 5:
      return tile_panel<P, 5>(a, row_scale, panel, start, out);
    default:
      return tile_panel<P, 6>(a, row_scale, panel, start, out);
  }
}

// Rows of x (M, K) as the products read them.
template <class P>
struct PreparedRows {
  typedef typename P::Element Element;
  Scratch<const Element*> row;
  Scratch<float> scale;

  PreparedRows(long m, long k) : row(m), scale(m), pitch(P::pitch(k)), copies(P::kCopies ? m * pitch : 0) {}
  void set(long i, const float* x, long k) {
    if constexpr (P::kCopies) {
      Element* copy = copies.data + i * pitch;
      scale.data[i] = P::prepare(x, k, copy);
      row.data[i] = copy;
    } else {
      row.data[i] = x;
    }
  }

 private:
  long pitch;
  Scratch<Element> copies;
};

}  // namespace
}  // namespace RHEME_NS
}  // namespace rheme
