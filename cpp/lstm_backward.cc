// LSTM back through whole sequences. Compiled once per ISA.
//
// The loop back through time makes the gradients of the gates alone, rows or hidden units shared out as in lstm.cc; those of
// the weights and of the input are three products over all valid steps after it.
#include "lstm_plan.h"
#include "lstm_weights.h"

namespace rheme {
namespace RHEME_NS {
namespace {

// What some rows of one direction carry from step to step on the way back.
template <class T>
struct Trail {
  long direction, group, groups, rows, steps;
  bool backwards;
  Scratch<T> dh, dc;

  Trail(const LstmBackwardArgs<T>& a, const Plan& plan, long direction_, long group_, long groups_)
      : direction(direction_),
        group(group_),
        groups(groups_),
        rows((a.batch - group + groups - 1) / groups),
        steps(rows ? plan.length(row(plan, 0)) : 0),
        backwards(direction_ == 1 || a.reverse),
        dh(rows * dh_row(a.hidden)),
        dc(rows * lstm_columns(a.hidden) / 4) {
    const long hidden = a.hidden, width = dh_row(hidden), padded = lstm_columns(hidden) / 4;
    for (long r = 0; r < rows; ++r) {
      const long at = (direction * a.batch + row(plan, r)) * hidden;
      for (long j = 0; j < width; ++j) dh.data[r * width + j] = a.dh_n && j < hidden ? a.dh_n[at + j] : T(0);
      for (long j = 0; j < padded; ++j) dc.data[r * padded + j] = a.dc_n && j < hidden ? a.dc_n[at + j] : T(0);
    }
  }
  static long dh_row(long hidden) { return round_up(hidden, kPanel); }  // the product writes whole vectors
  long row(const Plan& plan, long r) const { return plan.order.data[r * groups + group]; }
  long live(const Plan& plan, long s) const {  // rows that have a step s: a prefix
    long n = rows;
    while (n && plan.length(row(plan, n - 1)) <= s) --n;
    return n;
  }
  long time(long length, long s) const { return backwards ? length - 1 - s : s; }
};

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
    const Trail<T> q(a, plan, task / plan.groups, task % plan.groups, plan.groups);
    for (long s = q.steps - 1; s >= -1; --s) step(q, s, 0, ceil_div(a.hidden, kPanel));
    finish(q);
  }

  // All rows of one direction, with the hidden units shared out.
  void run_shared(long direction, long count) const {
    const Trail<T> q(a, plan, direction, 0, 1);
    const long panels = ceil_div(a.hidden, kPanel);
    const Shares steps(count, q.steps + 1);
    parallel(count, [&](long own) {
      steps.run(own, [&](long turn, long share) {
        step(q, q.steps - 1 - turn, share * panels / count, (share + 1) * panels / count);
      });
    });
    finish(q);
  }

  // Of the hidden units of panels [p0, p1): the gradients of h before step s + 1, then those of the gates at step s. Step -1
  // has the first part alone.
  void step(const Trail<T>& q, long s, long p0, long p1) const {
    const long columns = lstm_columns(a.hidden), padded = columns / 4, hidden = a.hidden, width = q.dh_row(hidden);
    if (s + 1 < q.steps) multiply(q, s + 1, p0, p1);
    const long live = s < 0 ? 0 : q.live(plan, s), last = min_long(p1 * (kPanel / kUnits), ceil_div(hidden, kUnits));
    for (long r = 0; r < live; ++r) {
      const long n = q.row(plan, r), t = q.time(plan.length(n), s), before = q.backwards ? t + 1 : t - 1;
      const long at = t * a.batch + n, cell = (q.direction * a.time * a.batch + at) * hidden;
      const T* c_previous = s > 0  ? a.cells + ((q.direction * a.time + before) * a.batch + n) * hidden
                            : a.c0 ? a.c0 + (q.direction * a.batch + n) * hidden
                                   : nullptr;
      const T* gates = a.gates + (q.direction * a.time * a.batch + at) * columns;
      T* out = gates_of(q, n, t);
      for (long p = p0 * (kPanel / kUnits); p < last; ++p)
        differentiate(gates + p * kPanel, a.cells + cell + p * kUnits, c_previous ? c_previous + p * kUnits : nullptr,
                      a.dy + at * a.directions * hidden + q.direction * hidden + p * kUnits, q.dh.data + r * width + p * kUnits,
                      q.dc.data + r * padded + p * kUnits, out + p * kPanel, min_long(kUnits, hidden - p * kUnits));
    }
  }

  T* gates_of(const Trail<T>& q, long n, long t) const {
    const long at = t * a.batch + n;
    return dgates[q.direction] + (valid_index ? valid_index[at] : at) * lstm_columns(a.hidden);
  }

  // dh = dgates R of step s, columns of panels [p0, p1).
  void multiply(const Trail<T>& q, long s, long p0, long p1) const {
    const long columns = lstm_columns(a.hidden), hidden = a.hidden, width = q.dh_row(hidden), live = q.live(plan, s);
    Scratch<const T*> step_gates(live);
    for (long r = 0; r < live; ++r) {
      const long n = q.row(plan, r);
      step_gates.data[r] = gates_of(q, n, q.time(plan.length(n), s));
    }
    for (long p = p0; p < p1; ++p)
      for (long k0 = 0; k0 < columns; k0 += kBlock) {
        const long depth = min_long(kBlock, columns - k0);
        const T* panel = panels_hh[q.direction] + (p * columns + k0) * kPanel;
        const T* next = k0 + depth < columns || p + 1 < p1 ? panel + depth * kPanel : nullptr;
        for (long i = 0, t = 0; i < live; ++t) {
          const long count = next_tile(live - i);
          const T* from[kTileRows];
          T* to[kTileRows];
          for (long r = 0; r < count; ++r) {
            from[r] = step_gates.data[i + r] + k0;
            to[r] = q.dh.data + (i + r) * width + p * kPanel;
          }
          tile_rows<T, false>(count, from, depth, panel, to, min_long(kPanel, hidden - p * kPanel), k0 > 0,
                              quarter(next, depth, t));
          i += count;
        }
      }
  }

  void finish(const Trail<T>& q) const {
    const long hidden = a.hidden, width = q.dh_row(hidden), padded = lstm_columns(hidden) / 4;
    for (long r = 0; r < q.rows; ++r) {
      const long at = (q.direction * a.batch + q.row(plan, r)) * hidden;
      for (long j = 0; j < hidden; ++j) {
        a.dh0[at + j] = q.dh.data[r * width + j];
        a.dc0[at + j] = q.dc.data[r * padded + j];
      }
    }
  }

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

// One step of one row: the weights are read as they stand, and their gradients are outer products.
template <class T>
void lstm_backward_once(const LstmBackwardArgs<T>& a, const Plan& plan) {
  typedef Simd<T> S;
  typedef typename S::V V;
  const long hidden = a.hidden, columns = lstm_columns(hidden), panels = columns / kPanel, strip = 8 * S::W;
  const Backward<T> backward = {a, plan, nullptr, nullptr, nullptr};
  Scratch<T> dgates(columns), dh(columns / 4), dc(columns / 4), nothing(hidden);
  for (long j = 0; j < hidden; ++j) nothing.data[j] = T(0);
  for (long d = 0; d < a.directions; ++d) {
    const long at = d * hidden;
    for (long j = 0; j < columns / 4; ++j) {
      dh.data[j] = a.dh_n && j < hidden ? a.dh_n[at + j] : T(0);
      dc.data[j] = a.dc_n && j < hidden ? a.dc_n[at + j] : T(0);
    }
    for (long p = 0; p < panels; ++p) {
      const long u = p * kUnits;
      backward.differentiate(a.gates + d * columns + p * kPanel, a.cells + at + u, a.c0 ? a.c0 + at + u : nullptr,
                             a.dy + at + u, dh.data + u, dc.data + u, dgates.data + p * kPanel, min_long(kUnits, hidden - u));
    }
    for (long j = 0; j < hidden; ++j) a.dc0[at + j] = dc.data[j];
    const T *dg = dgates.data, *h = a.h0 ? a.h0 + at : nothing.data;
    const long strips_h = ceil_div(hidden, strip), strips_x = a.dx ? ceil_div(a.input, strip) : 0;
    share(panels + strips_h + strips_x, 24 * hidden * (a.input + hidden), [&, d, dg, h, strips_h](long task) {
      if (task >= panels + strips_h)
        return multiply_strip(dg, a.w_ih[d], a.input, hidden, (task - panels - strips_h) * strip, a.dx, d == 1);
      if (task >= panels) return multiply_strip(dg, a.w_hh[d], hidden, hidden, (task - panels) * strip, a.dh0 + at, false);
      for (long c = task * kPanel; c < (task + 1) * kPanel; ++c) {
        const long row = weight_row(c, hidden);
        if (row < 0) continue;
        const V factor = S::set(dg[c]), zero = S::set(T(0));
        a.dbias[d][row] = dg[c] + T(0);
        T *w_ih = a.dw_ih[d] + row * a.input, *w_hh = a.dw_hh[d] + row * hidden;
        long j = 0;
        for (; j + S::W <= a.input; j += S::W) S::store(w_ih + j, S::fma(factor, S::load(a.x + j), zero));
        if (j < a.input) S::store_part(w_ih + j, S::fma(factor, S::load_part(a.x + j, a.input - j), zero), a.input - j);
        for (j = 0; j + S::W <= hidden; j += S::W) S::store(w_hh + j, S::fma(factor, S::load(h + j), zero));
        if (j < hidden) S::store_part(w_hh + j, S::fma(factor, S::load_part(h + j, hidden - j), zero), hidden - j);
      }
    });
  }
}

template <class T>
void lstm_backward(const LstmBackwardArgs<T>& a) {
  const long steps = a.time * a.batch, columns = lstm_columns(a.hidden), hidden = a.hidden, width = a.directions * hidden;
  const Plan plan(a.batch, a.time, a.directions, a.lengths, num_threads(), 32);
  if (steps == 1 && hidden > 0 && plan.length(0) == 1) return lstm_backward_once(a, plan);
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
  const double weights = 4.0 * static_cast<double>(hidden * hidden);
  const long panels = ceil_div(hidden, kPanel);
  if (4 * a.batch * hidden * hidden >= kWorthWaking && shares_units(a.batch, a.directions, weights, panels, sizeof(T))) {
    for (long d = 0; d < a.directions; ++d) backward.run_shared(d, min_long(num_threads(), panels));
  } else {
    parallel(a.directions * plan.groups, [&backward](long task) { backward.run(task); });
  }

  Scratch<long> gate_row(columns);
  for (long c = 0; c < columns; ++c) gate_row.data[c] = weight_row(c, hidden);
  const long input_panels = ceil_div(a.input, kPanel);
  Scratch<T> x_panels(panel_elements(valid, a.input)), h_panels(panel_elements(valid, hidden)), sums(columns);
  const long* dense = ragged ? dense_index.data : nullptr;
  parallel(input_panels, [&](long p) {
    const long first = p * kPanel, n = min_long(kPanel, a.input - first);
    T* out = x_panels.data + p * valid * kPanel;
    for (long i = 0; i < valid; ++i, out += kPanel) copy_line(a.x + (dense ? dense[i] : i) * a.input + first, n, out);
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
        copy_line(h, n_columns, out);
      }
    });
    const Product<T> dw_ih = {columns,       valid,      a.input, dg,      columns,       true,
                              x_panels.data, a.dw_ih[d], a.input, nullptr, gate_row.data, false};
    const Product<T> dw_hh = {columns,       valid,      hidden, dg,      columns,       true,
                              h_panels.data, a.dw_hh[d], hidden, nullptr, gate_row.data, false};
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
  table.lstm_backward = lstm_backward<T>;
}

}  // namespace

void fill_lstm_backward(Kernels& kernels) {
  fill(kernels.f32);
  fill(kernels.f64);
}

}  // namespace RHEME_NS
}  // namespace rheme
