// Weights stored small: packing, linear, embedding. Compiled once per ISA, and again for ISAs with int8 instructions.
#include "quantized.h"

namespace rheme {
namespace RHEME_NS {
namespace {

// The row of the weight (C, K) that stands in a column of the panels, or -1 in the padding; see weight_row in lstm.cc.
static long weight_row(const QuantizedMatrix& m, long column) {
  if (!m.gates) return column < m.c ? column : -1;
  const long hidden = m.c / 4, unit = column / kPanel * 16 + column % 16, gate = column % kPanel / 16;
  return unit < hidden ? gate * hidden + unit : -1;
}

template <class W>
static void pack_panel_of(const QuantizedMatrix& m, const W* weight, long group, long p, W* out) {
  const long groups = ceil_div(m.k, group);
  for (long j = 0; j < kPanel; ++j) {
    const long from = weight_row(m, p * kPanel + j);
    const W* row = weight + from * m.k;
    for (long g = 0; g < groups; ++g)
      for (long i = 0; i < group; ++i)
        out[(g * kPanel + j) * group + i] = from >= 0 && g * group + i < m.k ? row[g * group + i] : W(0);
  }
}

void pack(const PackQuantizedArgs& a) {
  const QuantizedMatrix m = {a.c, a.k, a.half, a.gates, nullptr, nullptr, nullptr};
  const long panels = quantized_columns(a.c, a.gates) / kPanel;
  parallel(panels, [&](long p) {
    if (a.half) {
      pack_panel_of(m, static_cast<const uint16_t*>(a.weight), 1, p, static_cast<uint16_t*>(a.panels) + p * a.k * kPanel);
      return;
    }
    const int8_t* weight = static_cast<const int8_t*>(a.weight);
    pack_panel_of(m, weight, 4, p, static_cast<int8_t*>(a.panels) + p * ceil_div(a.k, 4) * 4 * kPanel);
    for (long j = 0; j < kPanel; ++j) {
      const long from = weight_row(m, p * kPanel + j);
      int32_t sum = 0;
      for (long i = 0; from >= 0 && i < a.k; ++i) sum += weight[from * a.k + i];
      a.panel_scale[p * kPanel + j] = from >= 0 ? a.scale[from] : 0.0f;
      a.offsets[p * kPanel + j] = -128 * sum;
    }
  });
}

// The weight of column j of panel p as float32, k ascending.
static void expand(const QuantizedMatrix& m, long column, float* out) {
  const long j = column % kPanel;
  const Panel panel = panel_of(m, column / kPanel);
  if (m.half) {
    const uint16_t* w = static_cast<const uint16_t*>(panel.data) + j;
    uint16_t some[16] = {};
    float wide[16];
    for (long i = 0; i < m.k; i += 16) {
      const long n = min_long(16, m.k - i);
      for (long e = 0; e < n; ++e) some[e] = w[(i + e) * kPanel];
      for (long e = 0; e < 16; e += Simd<float>::W) Simd<float>::store(wide + e, load_half(some + e));
      for (long e = 0; e < n; ++e) out[i + e] = wide[e];
    }
    return;
  }
  const int8_t* w = static_cast<const int8_t*>(panel.data) + j * 4;
  const float scale = panel.scale[j];
  long i = 0;
  for (; i + 4 <= m.k; i += 4)
    for (long e = 0; e < 4; ++e) out[i + e] = static_cast<float>(w[i * kPanel + e]) * scale;
  for (; i < m.k; ++i) out[i] = static_cast<float>(w[i / 4 * 4 * kPanel + i % 4]) * scale;
}

void unpack(const UnpackQuantizedArgs& a) {
  const QuantizedMatrix& m = a.matrix;
  for (long column = 0; column < quantized_columns(m.c, m.gates); ++column) {
    const long row = weight_row(m, column);
    if (row >= 0) expand(m, column, a.weight + row * m.k);
  }
}

void embedding(const QuantizedEmbeddingArgs& a) {
  const auto rows = [&a](long first, long last) {
    for (long i = first; i < last; ++i) expand(a.weight, a.ids[i], a.y + i * a.weight.k);
  };
  const long block = 64;
  if (a.m <= block) return rows(0, a.m);
  parallel(ceil_div(a.m, block), [&](long task) { rows(task * block, min_long(a.m, (task + 1) * block)); });
}

// Rows [m0, m1) and panels [p0, p1) of y: a panel stays in the L1 cache while the rows pass by.
template <class P>
static void linear_part(const QuantizedLinearArgs& a, const PreparedRows<P>& x, long m0, long m1, long p0, long p1) {
  alignas(64) float edge[kTileRows][kPanel], bias[kPanel] = {};
  for (long p = p0; p < p1; ++p) {
    const long first = p * kPanel, columns = min_long(kPanel, a.weight.c - first);
    if (a.bias)
      for (long j = 0; j < columns; ++j) bias[j] = a.bias[first + j];
    const Panel panel = panel_of(a.weight, p);
    for (long i = m0; i < m1;) {
      const long rows = next_tile(m1 - i);
      const float* start[kTileRows];
      float* out[kTileRows];
      for (long r = 0; r < rows; ++r) {
        start[r] = bias;
        out[r] = columns == kPanel ? a.y + (i + r) * a.weight.c + first : edge[r];
      }
      tile_rows<P>(rows, x.row.data + i, x.scale.data + i, panel, start, out);
      if (columns < kPanel)
        for (long r = 0; r < rows; ++r)
          for (long j = 0; j < columns; ++j) a.y[(i + r) * a.weight.c + first + j] = edge[r][j];
      i += rows;
    }
  }
}

template <class P>
static void linear_by(const QuantizedLinearArgs& a) {
  const long panels = ceil_div(a.weight.c, kPanel), row_block = 96, row_blocks = ceil_div(a.m, row_block);
  if (a.m == 0 || panels == 0) return;
  PreparedRows<P> x(a.m, a.weight.k);
  const long work = a.m * a.weight.c * a.weight.k;
  if (num_threads() == 1 || work < 1500000) {  // a job costs a few microseconds
    for (long i = 0; i < a.m; ++i) x.set(i, a.x + i * a.weight.k, a.weight.k);
    for (long b = 0; b < row_blocks; ++b) linear_part<P>(a, x, b * row_block, min_long(a.m, (b + 1) * row_block), 0, panels);
    return;
  }
  if (a.m <= row_block)
    for (long i = 0; i < a.m; ++i) x.set(i, a.x + i * a.weight.k, a.weight.k);
  else
    parallel(row_blocks, [&](long b) {
      for (long i = b * row_block; i < min_long(a.m, (b + 1) * row_block); ++i) x.set(i, a.x + i * a.weight.k, a.weight.k);
    });
  // One part a thread where that is enough: the thread that had a part of the weights in its cache then has it again.
  const long groups = min_long(panels, ceil_div(row_blocks == 1 ? num_threads() : 4L * num_threads(), row_blocks));
  parallel(row_blocks * groups, [&](long task) {
    const long b = task / groups, g = task % groups;
    linear_part<P>(a, x, b * row_block, min_long(a.m, (b + 1) * row_block), g * panels / groups, (g + 1) * panels / groups);
  });
}

void linear(const QuantizedLinearArgs& a) {
  if (a.weight.half)
    linear_by<Half>(a);
  else
    linear_by<Int8>(a);
}

}  // namespace

void fill_quantized(Kernels& kernels) {
#if defined(RHEME_DOT_U8)
  kernels.quantized.dot = RHEME_DOT_U8;
#elif defined(RHEME_DOT_S8)
  kernels.quantized.dot = RHEME_DOT_S8;
#elif defined(RHEME_PAIRS)
  kernels.quantized.dot = RHEME_PAIRS;
#else
  kernels.quantized.dot = "int32";
#endif
  kernels.quantized.pack = pack;
  kernels.quantized.unpack = unpack;
  kernels.quantized.linear = linear;
  kernels.quantized.embedding = embedding;
}

}  // namespace RHEME_NS
}  // namespace rheme
