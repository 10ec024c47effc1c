// LSTM over whole sequences, one layer, one or two directions. Compiled once per ISA.
//
// Layout: panels of 64 columns hold the gates i f g o of 16 units, so one tile of the product has all that a unit needs and the
// activations run on it while it is in the L1 cache. Rows are independent: each task owns some rows of one direction and runs
// them through all steps with no barrier. Rows are dealt out by falling length, so that at each step the rows still alive are a
// prefix and the tasks are even. Weight gradients are three products over all valid steps after the loop.
#include "gemm.h"

namespace rheme {
namespace RHEME_NS {
namespace {

constexpr long kUnits = 16;  // per panel

static inline long round_up(long n, long to) { return ceil_div(n, to) * to; }

// The row of PyTorch's (4H, K) weights that stands in column c of the panels, or -1 in the padding.
static inline long weight_row(long c, long hidden) {
  const long unit = c / kPanel * kUnits + c % kUnits, gate = c % kPanel / kUnits;
  return unit < hidden ? gate * hidden + unit : -1;
}

template <class T>
void pack_gates(const T* w, long k, long hidden, T* panels) {
  parallel(lstm_columns(hidden) / kPanel, [=](long p) {
    T* out = panels + p * k * kPanel;
    for (long i0 = 0; i0 < k; i0 += 32) {  // 32 lines of the panel stay in L1 while each source row adds a column
      const long i1 = min_long(i0 + 32, k);
      for (long j = 0; j < kPanel; ++j) {
        const long row = weight_row(p * kPanel + j, hidden);
        if (row >= 0)
          for (long i = i0; i < i1; ++i) out[i * kPanel + j] = w[row * k + i];
        else
          for (long i = i0; i < i1; ++i) out[i * kPanel + j] = T(0);
      }
    }
  });
}

template <class T>
void pack_lstm(const PackLstmArgs<T>& a) {
  pack_gates(a.w_ih, a.input, a.hidden, a.panels_ih);
  pack_gates(a.w_hh, a.hidden, a.hidden, a.panels_hh);
}

// The transposed use of the same weights: B(k = gate column, n = n) for dgates * W.
template <class T>
void pack_gates_transposed(const T* w, long n, long hidden, T* panels) {
  const long columns = lstm_columns(hidden);
  parallel(ceil_div(n, kPanel), [=](long p) {
    const long first = p * kPanel, width = min_long(kPanel, n - first);
    T* out = panels + p * columns * kPanel;
    for (long c = 0; c < columns; ++c, out += kPanel) {
      const long row = weight_row(c, hidden);
      for (long j = 0; j < kPanel; ++j) out[j] = row >= 0 && j < width ? w[row * n + first + j] : T(0);
    }
  });
}

// Rows by falling length (equal ones in order), and the split of directions x rows into tasks.
struct Plan {
  long batch, time, groups;
  const int64_t* lengths;
  Scratch<int64_t> order;

  Plan(long batch_, long time_, long directions, const int64_t* lengths_)
      : batch(batch_), time(time_), groups(1), lengths(lengths_), order(batch_) {
    if (!lengths) {
      for (long n = 0; n < batch; ++n) order.data[n] = n;
    } else {  // counting sort
      Scratch<int64_t> start(time + 2);
      for (long l = 0; l <= time + 1; ++l) start.data[l] = 0;
      for (long n = 0; n < batch; ++n) ++start.data[time - lengths[n] + 1];
      for (long l = 0; l <= time; ++l) start.data[l + 1] += start.data[l];
      for (long n = 0; n < batch; ++n) order.data[start.data[time - lengths[n]]++] = n;
    }
    groups = max_long(1, min_long(batch, ceil_div(num_threads(), directions)));
  }
  long length(long n) const { return lengths ? lengths[n] : time; }
  long rows(long group) const { return (batch - group + groups - 1) / groups; }
  long row(long group, long r) const { return order.data[r * groups + group]; }
};

// One row of one direction, and where its steps stand.
struct Row {
  long n, length;
};

template <class T>
struct Forward {
  const LstmArgs<T>& a;
  const Plan& plan;
  typedef Simd<T> S;
  typedef typename S::V V;

  void run(long task) const {
    const long direction = task / plan.groups, group = task % plan.groups;
    const long rows = plan.rows(group), columns = lstm_columns(a.hidden), padded = columns / 4, hidden = a.hidden;
    const long width = a.directions * hidden;
    const bool backwards = direction == 1 || a.reverse;
    Scratch<Row> row(rows);
    Scratch<T> bias(columns), cell(rows * padded);
    for (long r = 0; r < rows; ++r) {
      const long n = plan.row(group, r);
      row.data[r] = {n, plan.length(n)};
      const T* c0 = a.c0 ? a.c0 + (direction * a.batch + n) * hidden : nullptr;
      for (long j = 0; j < padded; ++j) cell.data[r * padded + j] = c0 && j < hidden ? c0[j] : T(0);
    }
    for (long c = 0; c < columns; ++c) {
      const long from = weight_row(c, hidden);
      bias.data[c] = from >= 0 ? a.bias[direction][from] : T(0);
    }
    // The input product covers some steps at a time: enough rows to reuse each panel, few enough to stay in the L2 cache.
    const long chunk = max_long(1, ceil_div(48, max_long(1, rows)));
    Scratch<T> chunk_gates(a.gates ? 0 : chunk * rows * columns);
    Scratch<const T*> sources(chunk * rows);
    Scratch<T*> gates(chunk * rows);
    const long steps = rows ? row.data[0].length : 0;
    long live = rows;
    for (long s0 = 0; s0 < steps; s0 += chunk) {
      const long s1 = min_long(steps, s0 + chunk);
      long count = 0;
      for (long s = s0; s < s1; ++s)
        for (long r = 0; r < rows && row.data[r].length > s; ++r, ++count) {
          const long t = backwards ? row.data[r].length - 1 - s : s, at = t * a.batch + row.data[r].n;
          sources.data[count] = a.x + at * a.input;
          gates.data[count] =
              a.gates ? a.gates + (direction * a.time * a.batch + at) * columns : chunk_gates.data + count * columns;
        }
      input_product(direction, count, sources.data, gates.data, bias.data);
      T** step_gates = gates.data;
      for (long s = s0; s < s1; ++s) {
        while (live && row.data[live - 1].length <= s) --live;
        step(direction, backwards, s, live, row.data, step_gates, cell.data, padded, width);
        step_gates += live;
      }
    }
    for (long r = 0; r < rows; ++r) {
      const long n = row.data[r].n, length = row.data[r].length, state = (direction * a.batch + n) * hidden;
      const long last = backwards ? 0 : length - 1;
      const T* h = length ? a.y + (last * a.batch + n) * width + direction * hidden : a.h0 ? a.h0 + state : nullptr;
      for (long j = 0; j < hidden; ++j) {
        a.h_n[state + j] = h ? h[j] : T(0);
        a.c_n[state + j] = cell.data[r * padded + j];
      }
      for (long t = length; t < a.time; ++t) {
        T* y = a.y + (t * a.batch + n) * width + direction * hidden;
        for (long j = 0; j < hidden; ++j) y[j] = T(0);
      }
    }
  }

 private:
  void input_product(long direction, long count, const T* const* x, T* const* gates, const T* bias) const {
    const long panels = lstm_columns(a.hidden) / kPanel;
    for (long p = 0; p < panels; ++p) {
      const T* panel = a.panels_ih[direction] + p * a.input * kPanel;
      for (long i = 0; i < count;) {
        const long rows = next_tile(count - i);
        const T* from[kTileRows];
        T* to[kTileRows];
        for (long r = 0; r < rows; ++r) {
          to[r] = gates[i + r] + p * kPanel;
          for (long j = 0; j < kPanel; j += S::W) S::store(to[r] + j, S::load(bias + p * kPanel + j));
        }
        for (long k0 = 0; k0 < a.input; k0 += kBlock) {
          for (long r = 0; r < rows; ++r) from[r] = x[i + r] + k0;
          tile_rows<T, false>(rows, from, min_long(kBlock, a.input - k0), panel + k0 * kPanel, to, kPanel, true);
        }
        i += rows;
      }
    }
  }

  void step(long direction, bool backwards, long s, long live, const Row* row, T* const* gates, T* cell, long padded,
            long width) const {
    const long panels = padded / kUnits, hidden = a.hidden;
    Scratch<const T*> previous(live);
    Scratch<T*> output(live);
    bool recurrent = true;
    for (long r = 0; r < live; ++r) {
      const long n = row[r].n, t = backwards ? row[r].length - 1 - s : s, before = backwards ? t + 1 : t - 1;
      output.data[r] = a.y + (t * a.batch + n) * width + direction * hidden;
      if (s > 0)
        previous.data[r] = a.y + (before * a.batch + n) * width + direction * hidden;
      else if (a.h0)
        previous.data[r] = a.h0 + (direction * a.batch + n) * hidden;
      else
        recurrent = false;
    }
    for (long p = 0; p < panels; ++p) {
      const T* panel = a.panels_hh[direction] + p * hidden * kPanel;
      for (long i = 0; i < live;) {
        const long rows = next_tile(live - i);
        const T* from[kTileRows];
        T* to[kTileRows];
        for (long r = 0; r < rows; ++r) to[r] = gates[i + r] + p * kPanel;
        if (recurrent)
          for (long k0 = 0; k0 < hidden; k0 += kBlock) {
            for (long r = 0; r < rows; ++r) from[r] = previous.data[i + r] + k0;
            tile_rows<T, false>(rows, from, min_long(kBlock, hidden - k0), panel + k0 * kPanel, to, kPanel, true);
          }
        for (long r = 0; r < rows; ++r) {
          T* c = cell + (i + r) * padded + p * kUnits;
          const long t = backwards ? row[i + r].length - 1 - s : s;
          T* saved = a.cells ? a.cells + ((direction * a.time + t) * a.batch + row[i + r].n) * hidden + p * kUnits : nullptr;
          activate(to[r], c, output.data[i + r] + p * kUnits, saved, min_long(kUnits, hidden - p * kUnits));
        }
        i += rows;
      }
    }
  }

  // 16 units of one row, `valid` of them real.
  void activate(T* gates, T* cell, T* h, T* saved_cell, long valid) const {
    for (long j = 0; j < kUnits; j += S::W) {
      V i = S::load(gates + j), f = S::load(gates + kUnits + j), g = S::load(gates + 2 * kUnits + j),
        o = S::load(gates + 3 * kUnits + j), c = S::load(cell + j), hidden;
      lstm_cell<S>(i, f, g, o, c, hidden);
      S::store(cell + j, c);
      if (a.gates) {
        S::store(gates + j, i);
        S::store(gates + kUnits + j, f);
        S::store(gates + 2 * kUnits + j, g);
        S::store(gates + 3 * kUnits + j, o);
      }
      const long left = valid - j;
      if (left >= S::W) {
        S::store(h + j, hidden);
        if (saved_cell) S::store(saved_cell + j, c);
      } else if (left > 0) {
        S::store_part(h + j, hidden, left);
        if (saved_cell) S::store_part(saved_cell + j, c, left);
      }
    }
  }
};

template <class T>
void lstm(const LstmArgs<T>& a) {
  const Plan plan(a.batch, a.time, a.directions, a.lengths);
  const Forward<T> forward = {a, plan};
  parallel(a.directions * plan.groups, [&forward](long task) { forward.run(task); });
}

// The loop back through time: dgates of every valid step, dh0 and dc0.
template <class T>
struct Backward {
  const LstmBackwardArgs<T>& a;
  const Plan& plan;
  const int64_t* valid_index;  // (T, N): the number of this step among the valid ones, or null: all are valid
  T* const* panels_hh;         // per direction: R transposed, (4H) x H
  T* const* dgates;            // per direction: (valid steps, lstm_columns(H))
  typedef Simd<T> S;
  typedef typename S::V V;

  void run(long task) const {
    const long direction = task / plan.groups, group = task % plan.groups;
    const long rows = plan.rows(group), columns = lstm_columns(a.hidden), padded = columns / 4, hidden = a.hidden;
    const long state = round_up(hidden, kPanel);  // the product writes whole vectors
    const bool backwards = direction == 1 || a.reverse;
    Scratch<T> dh(rows * state), dc(rows * padded);
    Scratch<T*> step_gates(rows);
    for (long r = 0; r < rows; ++r) {
      const long at = (direction * a.batch + plan.row(group, r)) * hidden;
      for (long j = 0; j < state; ++j) dh.data[r * state + j] = a.dh_n && j < hidden ? a.dh_n[at + j] : T(0);
      for (long j = 0; j < padded; ++j) dc.data[r * padded + j] = a.dc_n && j < hidden ? a.dc_n[at + j] : T(0);
    }
    long live = 0;
    const long steps = rows ? plan.length(plan.row(group, 0)) : 0;
    for (long s = steps - 1; s >= 0; --s) {
      while (live < rows && plan.length(plan.row(group, live)) > s) ++live;
      for (long r = 0; r < live; ++r) {
        const long n = plan.row(group, r), t = backwards ? plan.length(n) - 1 - s : s, before = backwards ? t + 1 : t - 1;
        const long at = t * a.batch + n, cell = (direction * a.time * a.batch + at) * hidden;
        const T* c_previous = s > 0  ? a.cells + ((direction * a.time + before) * a.batch + n) * hidden
                              : a.c0 ? a.c0 + (direction * a.batch + n) * hidden
                                     : nullptr;
        step_gates.data[r] = dgates[direction] + (valid_index ? valid_index[at] : at) * columns;
        const T* gates = a.gates + (direction * a.time * a.batch + at) * columns;
        for (long p = 0; p * kUnits < hidden; ++p)
          differentiate(gates + p * kPanel, a.cells + cell + p * kUnits, c_previous ? c_previous + p * kUnits : nullptr,
                        a.dy + at * a.directions * hidden + direction * hidden + p * kUnits, dh.data + r * state + p * kUnits,
                        dc.data + r * padded + p * kUnits, step_gates.data[r] + p * kPanel, min_long(kUnits, hidden - p * kUnits));
      }
      for (long p = 0; p * kPanel < hidden; ++p)
        for (long k0 = 0; k0 < columns; k0 += kBlock) {
          const T* panel = panels_hh[direction] + (p * columns + k0) * kPanel;
          for (long i = 0; i < live;) {
            const long count = next_tile(live - i);
            const T* from[kTileRows];
            T* to[kTileRows];
            for (long r = 0; r < count; ++r) {
              from[r] = step_gates.data[i + r] + k0;
              to[r] = dh.data + (i + r) * state + p * kPanel;
            }
            tile_rows<T, false>(count, from, min_long(kBlock, columns - k0), panel, to, min_long(kPanel, hidden - p * kPanel),
                                k0 > 0);
            i += count;
          }
        }
    }
    for (long r = 0; r < rows; ++r) {
      const long at = (direction * a.batch + plan.row(group, r)) * hidden;
      for (long j = 0; j < hidden; ++j) {
        a.dh0[at + j] = dh.data[r * state + j];
        a.dc0[at + j] = dc.data[r * padded + j];
      }
    }
  }

 private:
  void differentiate(const T* gates, const T* cell, const T* previous, const T* dy, const T* dh, T* dc, T* out,
                     long valid) const {
    T part[3][kUnits];
    if (valid < kUnits) {  // the last units of a hidden size that is no multiple of 16
      for (long j = 0; j < kUnits; ++j) {
        part[0][j] = j < valid ? cell[j] : T(0);
        part[1][j] = j < valid && previous ? previous[j] : T(0);
        part[2][j] = j < valid ? dy[j] : T(0);
      }
      cell = part[0];
      previous = part[1];
      dy = part[2];
    }
    for (long j = 0; j < kUnits; j += S::W) {
      V i = S::load(gates + j), f = S::load(gates + kUnits + j), g = S::load(gates + 2 * kUnits + j),
        o = S::load(gates + 3 * kUnits + j), c = S::load(dc + j);
      V dhidden = S::load(dy + j) + S::load(dh + j);
      lstm_cell_backward<S>(i, f, g, o, S::load(cell + j), previous ? S::load(previous + j) : S::set(T(0)), dhidden, c);
      S::store(dc + j, c);
      S::store(out + j, i);
      S::store(out + kUnits + j, f);
      S::store(out + 2 * kUnits + j, g);
      S::store(out + 3 * kUnits + j, o);
    }
  }
};

template <class T>
void lstm_backward(const LstmBackwardArgs<T>& a) {
  const long steps = a.time * a.batch, columns = lstm_columns(a.hidden), hidden = a.hidden, width = a.directions * hidden;
  const Plan plan(a.batch, a.time, a.directions, a.lengths);
  long valid = steps;
  if (a.lengths) {
    valid = 0;
    for (long n = 0; n < a.batch; ++n) valid += a.lengths[n];
  }
  const bool ragged = valid != steps;
  // The valid steps in order of time: dense_index[valid number] = t * N + n, and its inverse.
  Scratch<int64_t> valid_index(ragged ? steps : 0);
  Scratch<long> dense_index(ragged ? valid : 0);
  if (ragged) {
    long count = 0;
    for (long t = 0; t < a.time; ++t)
      for (long n = 0; n < a.batch; ++n)
        if (a.lengths[n] > t) {
          valid_index.data[t * a.batch + n] = count;
          dense_index.data[count++] = t * a.batch + n;
        }
  }
  Scratch<T> dgates(a.directions * valid * columns);
  const long recurrent_panels = panel_elements(columns, hidden);
  Scratch<T> transposed(a.directions * recurrent_panels);
  T* panels_hh[2] = {transposed.data, transposed.data + recurrent_panels};
  T* direction_dgates[2] = {dgates.data, dgates.data + valid * columns};
  for (long d = 0; d < a.directions; ++d) pack_gates_transposed(a.w_hh[d], hidden, hidden, panels_hh[d]);
  const Backward<T> backward = {a, plan, ragged ? valid_index.data : nullptr, panels_hh, direction_dgates};
  parallel(a.directions * plan.groups, [&backward](long task) { backward.run(task); });

  Scratch<long> gate_row(columns);
  for (long c = 0; c < columns; ++c) gate_row.data[c] = weight_row(c, hidden);
  const long input_panels = ceil_div(a.input, kPanel);
  Scratch<T> x_panels(panel_elements(valid, a.input)), h_panels(panel_elements(valid, hidden)), sums(columns);
  const long* dense = ragged ? dense_index.data : nullptr;
  parallel(input_panels, [&](long p) {
    const long first = p * kPanel, n = min_long(kPanel, a.input - first);
    T* out = x_panels.data + p * valid * kPanel;
    for (long i = 0; i < valid; ++i, out += kPanel) {
      const T* x = a.x + (dense ? dense[i] : i) * a.input + first;
      for (long j = 0; j < kPanel; ++j) out[j] = j < n ? x[j] : T(0);
    }
  });
  if (a.dx && ragged)
    for (long n = 0; n < a.batch; ++n)
      for (long t = a.lengths[n]; t < a.time; ++t)
        for (long j = 0; j < a.input; ++j) a.dx[(t * a.batch + n) * a.input + j] = T(0);
  for (long d = 0; d < a.directions; ++d) {
    const T* dg = direction_dgates[d];
    const bool backwards = d == 1 || a.reverse;
    parallel(ceil_div(hidden, kPanel), [&](long p) {  // the hidden state before each step
      const long first = p * kPanel, n_columns = min_long(kPanel, hidden - first);
      T* out = h_panels.data + p * valid * kPanel;
      for (long i = 0; i < valid; ++i, out += kPanel) {
        const long at = dense ? dense[i] : i, t = at / a.batch, n = at % a.batch;
        const long before = backwards ? t + 1 : t - 1;
        const T* h;
        if (before >= 0 && before < plan.length(n))
          h = a.y + (before * a.batch + n) * width + d * hidden + first;
        else
          h = a.h0 ? a.h0 + (d * a.batch + n) * hidden + first : nullptr;
        for (long j = 0; j < kPanel; ++j) out[j] = h && j < n_columns ? h[j] : T(0);
      }
    });
    const Product<T> dw_ih = {columns, valid, a.input, dg, columns, true, x_panels.data, a.dw_ih[d], a.input, nullptr, gate_row.data, false};
    const Product<T> dw_hh = {columns, valid, hidden, dg, columns, true, h_panels.data, a.dw_hh[d], hidden, nullptr, gate_row.data, false};
    dw_ih.run_parallel();
    dw_hh.run_parallel();
    column_sums(valid, columns, dg, columns, sums.data);
    for (long c = 0; c < columns; ++c)
      if (gate_row.data[c] >= 0) a.dbias[d][gate_row.data[c]] = sums.data[c];
    if (a.dx) {
      Scratch<T> w_panels(panel_elements(columns, a.input));
      pack_gates_transposed(a.w_ih[d], a.input, hidden, w_panels.data);
      const Product<T> dx = {valid, columns, a.input, dg, columns, false, w_panels.data, a.dx, a.input, nullptr, dense, d == 1};
      dx.run_parallel();
    }
  }
}

template <class T>
void fill(Table<T>& table) {
  table.pack_lstm = pack_lstm<T>;
  table.lstm = lstm<T>;
  table.lstm_backward = lstm_backward<T>;
}

}  // namespace

void fill_lstm(Kernels& kernels) {
  fill(kernels.f32);
  fill(kernels.f64);
}

}  // namespace RHEME_NS
}  // namespace rheme
