// Packed panels and the register-blocked micro-kernel. Included by kernel files only; internal linkage throughout.
//
// A product C = A B reads B from panels of 64 columns, [ceil(C / 64)][K][64], and A through one pointer per row. Each element
// of C is one chain of fused multiply-adds, k ascending, per block of 512 k; block sums are added in order. So its bits depend
// on nothing but its row, its column and K: not on the batch, the tile, the thread or the width of the vectors.
#pragma once

#include "kernels.h"
#include "memory.h"
#include "simd.h"
#include "threads.h"
#include "transpose.h"

namespace rheme {
namespace RHEME_NS {
namespace {

constexpr long kPanel = 64;
constexpr long kBlock = 512;  // of k
constexpr long kFewRows = 48;
constexpr long kWorthSharing = 200000;  // floating-point operations; a job costs a few microseconds
constexpr long kFetch = 4096;
constexpr long kTileRows = 6;  // 6 rows x 4 vectors fill 32 registers with the panel's 4 and a broadcast; 6 x 2 fill 16

static inline long ceil_div(long a, long b) { return (a + b - 1) / b; }
static inline long min_long(long a, long b) { return a < b ? a : b; }
static inline long max_long(long a, long b) { return a > b ? a : b; }

// parallel_for with a callable; the wrapper has internal linkage like everything here.
template <class F>
static void call_task(void* context, long index) {
  (*static_cast<F*>(context))(index);
}
template <class F>
static void parallel(long tasks, F body) {
  parallel_for(tasks, call_task<F>, &body);
}

// A block of the arena for the length of a scope.
template <class T>
struct Scratch {
  T* data;
  explicit Scratch(long n) : data(static_cast<T*>(arena_allocate(static_cast<size_t>(n > 0 ? n : 1) * sizeof(T)))) {}
  ~Scratch() { arena_free(data); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
};

// MR rows x NV vectors, k values of one block. a[r] points at the row's first k; packed instead: a[0] is [k][MR]. AHEAD:
// fetches k lines of 64 bytes from `ahead` on into the L2 cache. Few rows wait for the panel, so its lines are fetched into the
// L1 cache kFetch bytes ahead, also those of the panel that follows: 133 GB/s from the L3 cache where the processor's own
// fetching, which ends with each page, gave 100 to 112.
template <class T, int MR, int NV, bool PACKED, bool AHEAD>
RHEME_FN void tile(const T* const* a, long k, const T* panel, T* const* c, long column, bool accumulate, const T* ahead) {
  typedef Simd<T> S;
  typedef typename S::V V;
  V acc[MR][NV];
#pragma GCC unroll 8
  for (int r = 0; r < MR; ++r)
#pragma GCC unroll 8
    for (int j = 0; j < NV; ++j) acc[r][j] = S::set(T(0));
  const T* row[MR];
#pragma GCC unroll 8
  for (int r = 0; r < MR; ++r) row[r] = PACKED ? a[0] : a[r];
  for (long i = 0; i < k; ++i) {
    if constexpr (AHEAD) __builtin_prefetch(ahead + i * (64 / sizeof(T)), 0, 2);
    if constexpr (MR <= 3)
#pragma GCC unroll 8
      for (long j = 0; j < NV * S::W; j += 64 / sizeof(T))
        __builtin_prefetch(panel + i * kPanel + j + kFetch / static_cast<long>(sizeof(T)));
    V b[NV];
#pragma GCC unroll 8
    for (int j = 0; j < NV; ++j) b[j] = S::load(panel + i * kPanel + j * S::W);
#pragma GCC unroll 8
    for (int r = 0; r < MR; ++r) {
      const V x = S::set(PACKED ? row[0][i * MR + r] : row[r][i]);
#pragma GCC unroll 8
      for (int j = 0; j < NV; ++j) acc[r][j] = S::fma(x, b[j], acc[r][j]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < MR; ++r)
#pragma GCC unroll 8
    for (int j = 0; j < NV; ++j) {
      T* out = c[r] + column + j * S::W;
      S::store(out, accumulate ? S::load(out) + acc[r][j] : acc[r][j]);
    }
}

// The 64 (or fewer) columns of a panel for one tile of rows. c must have room for `columns` rounded up to whole vectors.
template <class T, int MR, bool PACKED, bool AHEAD = false>
static void tile_columns(const T* const* a, long k, const T* panel, T* const* c, long columns, bool accumulate,
                         const T* ahead = nullptr) {
  constexpr long W = Simd<T>::W;
  constexpr int NV = RHEME_REGISTERS == 32 ? 4 : 2;
  long j = 0;
  if constexpr (AHEAD)
    if (columns > (NV - 1) * W) {
      tile<T, MR, NV, PACKED, true>(a, k, panel, c, 0, accumulate, ahead);
      j = NV * W;
    }
  for (; columns - j > (NV - 1) * W; j += NV * W) tile<T, MR, NV, PACKED, false>(a, k, panel + j, c, j, accumulate, nullptr);
  if (columns <= j) return;
  const long left = ceil_div(columns - j, W);
  if (left == 1) tile<T, MR, 1, PACKED, false>(a, k, panel + j, c, j, accumulate, nullptr);
  if constexpr (NV == 4) {
    if (left == 2) tile<T, MR, 2, PACKED, false>(a, k, panel + j, c, j, accumulate, nullptr);
    if (left == 3) tile<T, MR, 3, PACKED, false>(a, k, panel + j, c, j, accumulate, nullptr);
  }
}

// A quarter of the panel that comes next, of k lines, for tile number t of this one to fetch: multiply-adds then hide the time
// that the L3 cache or the memory takes. Null where there is none; few rows leave no time for it.
template <class T>
RHEME_FN const T* quarter(const T* next, long k, long t) {
  return next && t < 4 ? next + t * k * (kPanel / 4) : nullptr;
}

template <class T, bool PACKED>
static void tile_rows(long rows, const T* const* a, long k, const T* panel, T* const* c, long columns, bool accumulate,
                      const T* ahead = nullptr) {
  if (ahead && rows >= 4) {
    if (rows == 4) return tile_columns<T, 4, PACKED, true>(a, k, panel, c, columns, accumulate, ahead);
    if (rows == 5) return tile_columns<T, 5, PACKED, true>(a, k, panel, c, columns, accumulate, ahead);
    return tile_columns<T, 6, PACKED, true>(a, k, panel, c, columns, accumulate, ahead);
  }
  switch (rows) {
    case 1:
      return tile_columns<T, 1, PACKED>(a, k, panel, c, columns, accumulate);
    case 2:
      return tile_columns<T, 2, PACKED>(a, k, panel, c, columns, accumulate);
    case 3:
      return tile_columns<T, 3, PACKED>(a, k, panel, c, columns, accumulate);
    case 4:
      return tile_columns<T, 4, PACKED>(a, k, panel, c, columns, accumulate);
    case 5:
      return tile_columns<T, 5, PACKED>(a, k, panel, c, columns, accumulate);
    default:
      return tile_columns<T, 6, PACKED>(a, k, panel, c, columns, accumulate);
  }
}

// Rows of the next tile when `left` rows remain: near-equal tiles (16 = 6 + 5 + 5) keep the vector units busier than 6 + 6 + 4.
static inline long next_tile(long left) { return ceil_div(left, ceil_div(left, kTileRows)); }

// One line of a panel, `columns` of it given, the others zero; all zero where source is null.
template <class T>
RHEME_FN void copy_line(const T* source, long columns, T* line) {
  typedef Simd<T> S;
  if (source && columns == kPanel) {
#pragma GCC unroll 8
    for (long j = 0; j < kPanel; j += S::W) S::store(line + j, S::load(source + j));
    return;
  }
  for (long j = 0; j < kPanel; ++j) line[j] = source && j < columns ? source[j] : T(0);
}

// Panel p of B, given as b(k, n) = b[k * k_stride + n * n_stride]; one of the strides is 1.
template <class T>
static void pack_panel(const T* b, long k_stride, long n_stride, long k, long n, long p, T* out) {
  const long first = p * kPanel, columns = min_long(kPanel, n - first);
  const T* source = b + first * n_stride;
  if (n_stride == 1) {
    for (long i = 0; i < k; ++i) copy_line(source + i * k_stride, columns, out + i * kPanel);
    return;
  }
  transpose_into(source, n_stride, k, columns, out, kPanel, kPanel);
}

template <class T>
static void pack_panels(const T* b, long k_stride, long n_stride, long k, long n, T* out) {
  parallel(ceil_div(n, kPanel), [=](long p) { pack_panel(b, k_stride, n_stride, k, n, p, out + p * k * kPanel); });
}

// C (+)= A B for the rows [m0, m1) and the panels [p0, p1), by the calling thread.
template <class T>
struct Product {
  long m, k, n;
  const T* a;  // a(m, k) = a[m * a_row + k] or, transposed, a[k * a_row + m]
  long a_row;
  bool a_transposed;
  const T* panels;  // B
  T* c;             // c(m, n) = c[m * c_row + n]
  long c_row;
  const T* bias;         // (n,) or null: what C starts from, else 0
  const long* c_index;   // row m of C stands at c_index[m], -1: nowhere; null: m itself
  bool accumulate;       // start from what C holds
  long first_panel = 0;  // the panel that `panels` begins with

  void run(long m0, long m1, long p0, long p1) const {
    if (m0 >= m1) return;
    const T* rows_a[kTileRows];
    T* rows_c[kTileRows];
    alignas(64) T edge[kTileRows][kPanel];
    Scratch<T> packed(a_transposed ? (m1 - m0 + kTileRows) * min_long(k, kBlock) : 0);
    for (long k0 = 0; k0 < k || k0 == 0; k0 += kBlock) {
      const long depth = min_long(kBlock, k - k0);
      if (a_transposed) pack_rows(m0, m1, k0, depth, packed.data);
      for (long p = p0; p < p1; ++p) {
        const long first = p * kPanel, columns = min_long(kPanel, n - first);
        const T* panel = panels + ((p - first_panel) * k + k0) * kPanel;
        const T* next = p + 1 < p1 ? panel + k * kPanel : nullptr;
        const T* pack = packed.data;
        for (long i = m0, t = 0; i < m1; ++t) {
          const long rows = next_tile(m1 - i);
          // Whole vectors are written, so a ragged last panel, and rows that stand nowhere, go through `edge`.
          bool direct = columns % Simd<T>::W == 0;
          for (long r = 0; r < rows; ++r) {
            rows_a[r] = a_transposed ? pack : a + (i + r) * a_row + k0;
            const long target = c_index ? c_index[i + r] : i + r;
            rows_c[r] = target < 0 ? nullptr : c + target * c_row + first;
            if (target < 0) direct = false;
          }
          const bool start = k0 == 0 && !accumulate;
          T* targets[kTileRows];
          for (long r = 0; r < rows; ++r) {
            targets[r] = direct ? rows_c[r] : edge[r];
            if (!direct && !(start && !bias))
              for (long j = 0; j < columns; ++j) edge[r][j] = start || !rows_c[r] ? T(0) : rows_c[r][j];
            if (start && bias)
              for (long j = 0; j < columns; ++j) targets[r][j] = bias[first + j];
          }
          const bool add = !start || bias;
          const T* ahead = quarter(next, depth, t);
          if (a_transposed)
            tile_rows<T, true>(rows, rows_a, depth, panel, targets, columns, add, ahead);
          else
            tile_rows<T, false>(rows, rows_a, depth, panel, targets, columns, add, ahead);
          if (!direct)
            for (long r = 0; r < rows; ++r)
              if (rows_c[r])
                for (long j = 0; j < columns; ++j) rows_c[r][j] = edge[r][j];
          i += rows;
          pack += rows * depth;
        }
      }
    }
  }

  // All of C over the pool. Blocks of 96 rows by 512 k, or 192 by 256, keep a packed block of A (192 KB) in the L2 cache.
  void run_parallel() const {
    const long panels_count = ceil_div(n, kPanel);
    if (m == 0 || panels_count == 0) return;
    const long row_block = k <= 256 ? 192 : 96, row_blocks = ceil_div(m, row_block);
    const long wanted = 4L * num_threads();
    const long groups = num_threads() == 1 || 2 * m * n * k < kWorthSharing
                            ? 1
                            : min_long(panels_count, max_long(1, ceil_div(wanted, row_blocks)));
    if (num_threads() == 1 || 2 * m * n * k < kWorthSharing) {
      for (long block = 0; block < row_blocks; ++block)
        run(block * row_block, min_long(m, (block + 1) * row_block), 0, panels_count);
      return;
    }
    const Product self = *this;
    parallel(row_blocks * groups, [self, row_block, groups, panels_count](long task) {
      const long block = task / groups, group = task % groups;
      self.run(block * row_block, min_long(self.m, (block + 1) * row_block), group * panels_count / groups,
               (group + 1) * panels_count / groups);
    });
  }

 private:
  // A^T in tiles of [depth][rows], in the order in which run() walks the tiles. A few lines of A at a time: many at a stride of
  // a power of two would fall into the same sets of the cache, and each is read by all tiles.
  void pack_rows(long m0, long m1, long k0, long depth, T* out) const {
    constexpr long kLines = 8;
    const long count = ceil_div(m1 - m0, kTileRows), least = (m1 - m0) / count, larger = (m1 - m0) % count;
    for (long j = 0; j < depth; j += kLines) {
      const T* source = a + (k0 + j) * a_row + m0;
      const long lines = min_long(kLines, depth - j);
      T* tile = out;
      for (long t = 0; t < count; ++t) {
        const long rows = least + (t < larger);  // as next_tile deals them out
        T* to = tile + j * rows;
        switch (rows) {  // a constant number of rows makes whole vectors of each line
          case 6:
            pack_tile<6>(source, lines, to);
            break;
          case 5:
            pack_tile<5>(source, lines, to);
            break;
          case 4:
            pack_tile<4>(source, lines, to);
            break;
          default:
            for (long i = 0; i < lines; ++i)
              for (long r = 0; r < rows; ++r) to[i * rows + r] = source[i * a_row + r];
        }
        source += rows;
        tile += rows * depth;
      }
    }
  }

  template <int ROWS>
  void pack_tile(const T* source, long lines, T* out) const {
    for (long j = 0; j < lines; ++j, source += a_row, out += ROWS)
#pragma GCC unroll 6
      for (int r = 0; r < ROWS; ++r) out[r] = source[r];
  }
};

// y (M, C) (+)= a b with both operands plain: packs b first. a and b may be transposed.
template <class T>
static void multiply(long m, long k, long n, const T* a, long a_row, bool a_transposed, const T* b, long b_row,
                     bool b_transposed, T* c, long c_row, const T* bias, bool accumulate) {
  if (m <= kFewRows) {  // each panel is used once: packed where it is used, it never leaves the L2 cache
    const auto columns = [=](long p) {
      Scratch<T> panel(k * kPanel);
      pack_panel(b, b_transposed ? 1 : b_row, b_transposed ? b_row : 1, k, n, p, panel.data);
      const Product<T> product = {m, k, n, a, a_row, a_transposed, panel.data, c, c_row, bias, nullptr, accumulate, p};
      product.run(0, m, p, p + 1);
    };
    const long count = ceil_div(n, kPanel);
    if (2 * m * n * k >= kWorthSharing) return parallel(count, columns);
    for (long p = 0; p < count; ++p) columns(p);
    return;
  }
  Scratch<T> panels(panel_elements(k, n));
  pack_panels(b, b_transposed ? 1 : b_row, b_transposed ? b_row : 1, k, n, panels.data);
  const Product<T> product = {m, k, n, a, a_row, a_transposed, panels.data, c, c_row, bias, nullptr, accumulate};
  product.run_parallel();
}

// The same by the calling thread alone, for use inside a task.
template <class T>
static void multiply_serial(long m, long k, long n, const T* a, long a_row, bool a_transposed, const T* b, long b_row,
                            bool b_transposed, T* c, long c_row, bool accumulate) {
  const long count = ceil_div(n, kPanel);
  Scratch<T> panels(panel_elements(k, n));
  for (long p = 0; p < count; ++p)
    pack_panel(b, b_transposed ? 1 : b_row, b_transposed ? b_row : 1, k, n, p, panels.data + p * k * kPanel);
  const Product<T> product = {m, k, n, a, a_row, a_transposed, panels.data, c, c_row, nullptr, nullptr, accumulate};
  product.run(0, m, 0, count);
}

// Sums of the columns of x (M, C): rows in order, blocks of 512 rows added in order.
template <class T>
static void column_sums(long m, long c, const T* x, long row, T* out) {
  typedef Simd<T> S;
  const long strip = 256;
  parallel(ceil_div(c, strip), [=](long s) {
    T block[strip], total[strip];
    const long first = s * strip, n = min_long(strip, c - first);
    for (long j = 0; j < n; ++j) total[j] = T(0);
    for (long m0 = 0; m0 < m; m0 += kBlock) {
      for (long j = 0; j < n; ++j) block[j] = T(0);
      for (long i = m0; i < min_long(m, m0 + kBlock); ++i) {
        const T* source = x + i * row + first;
        long j = 0;
        for (; j + S::W <= n; j += S::W) S::store(block + j, S::load(block + j) + S::load(source + j));
        for (; j < n; ++j) block[j] = block[j] + source[j];
      }
      for (long j = 0; j < n; ++j) total[j] = total[j] + block[j];
    }
    for (long j = 0; j < n; ++j) out[first + j] = total[j];
  });
}

}  // namespace
}  // namespace RHEME_NS
}  // namespace rheme
