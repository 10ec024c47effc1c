// LSTM over whole sequences, one layer, one or two directions. Compiled once per ISA.
//
// Layout: panels of 64 columns hold the gates i f g o of 16 units, so one tile of the product has all that a unit needs and the
// activations run on it while it is in the L1 cache. Rows are independent: a task owns some rows of one direction and runs them
// through all steps with no barrier; or, where the weights outgrow a core's cache, each thread owns some hidden units of all
// rows.
#include "lstm_plan.h"
#include "lstm_weights.h"

namespace rheme {
namespace RHEME_NS {
namespace {

template <class T>
void pack_lstm(const PackLstmArgs<T>& a) {
  pack_gates(a.w_ih, a.input, a.hidden, a.panels_ih);
  pack_gates(a.w_hh, a.hidden, a.hidden, a.panels_hh);
}

// One row of one direction, and where its steps stand.
struct Row {
  long n, length;
};

// What one direction of some rows needs through all its steps.
template <class T>
struct Sequence {
  long direction, rows, steps;
  bool backwards;
  Scratch<Row> row;  // by falling length
  Scratch<T> bias, cell;

  Sequence(const LstmArgs<T>& a, const Plan& plan, long direction_, long group, long groups)
      : direction(direction_),
        rows((a.batch - group + groups - 1) / groups),
        steps(0),
        backwards(direction_ == 1 || a.reverse),
        row(rows),
        bias(lstm_columns(a.hidden)),
        cell(rows * lstm_columns(a.hidden) / 4) {
    const long columns = lstm_columns(a.hidden), padded = columns / 4;
    for (long r = 0; r < rows; ++r) {
      const long n = plan.order.data[r * groups + group];
      row.data[r] = {n, plan.length(n)};
      const T* c0 = a.c0 ? a.c0 + (direction * a.batch + n) * a.hidden : nullptr;
      for (long j = 0; j < padded; ++j) cell.data[r * padded + j] = c0 && j < a.hidden ? c0[j] : T(0);
    }
    for (long c = 0; c < columns; ++c) {
      const long from = weight_row(c, a.hidden);
      bias.data[c] = from >= 0 ? a.bias[direction][from] : T(0);
    }
    if (rows) steps = row.data[0].length;
  }
  long time(long r, long s) const { return backwards ? row.data[r].length - 1 - s : s; }
  long live(long s) const {  // rows that have a step s: a prefix
    long n = rows;
    while (n && row.data[n - 1].length <= s) --n;
    return n;
  }
};

template <class T>
struct Forward {
  const LstmArgs<T>& a;
  const Plan& plan;
  typedef Simd<T> S;
  typedef typename S::V V;

  // Some rows through all steps, by one thread.
  void run(long task) const {
    const Sequence<T> q(a, plan, task / plan.groups, task % plan.groups, plan.groups);
    const long columns = lstm_columns(a.hidden), panels = columns / kPanel;
    const long chunk = this->chunk(q);
    Scratch<T> chunk_gates(a.gates ? 0 : chunk * q.rows * columns);
    Scratch<const T*> inputs(chunk * q.rows);
    Scratch<T*> gates(chunk * q.rows);
    for (long s0 = 0; s0 < q.steps; s0 += chunk) {
      const long s1 = min_long(q.steps, s0 + chunk);
      const long count = place(q, s0, s1, chunk_gates.data, inputs.data, gates.data);
      input_product(q, count, inputs.data, gates.data, 0, panels);
      T** step_gates = gates.data;
      for (long s = s0; s < s1; ++s) {
        const long live = q.live(s);
        step(q, s, live, step_gates, 0, panels);
        step_gates += live;
      }
    }
    finish(q);
  }

  // The input product covers this many steps at a time: enough rows to reuse each panel, few enough to stay in the L2 cache.
  long chunk(const Sequence<T>& q) const { return max_long(1, ceil_div(96, max_long(1, q.rows))); }

  // Where the inputs and the gates of the live rows of steps [s0, s1) stand; returns how many there are.
  long place(const Sequence<T>& q, long s0, long s1, T* scratch, const T** inputs, T** gates) const {
    const long columns = lstm_columns(a.hidden);
    long count = 0;
    for (long s = s0; s < s1; ++s)
      for (long r = 0; r < q.rows && q.row.data[r].length > s; ++r, ++count) {
        const long at = q.time(r, s) * a.batch + q.row.data[r].n;
        inputs[count] = a.x + at * a.input;
        gates[count] = a.gates ? a.gates + (q.direction * a.time * a.batch + at) * columns : scratch + count * columns;
      }
    return count;
  }

  void finish(const Sequence<T>& q) const {
    const long hidden = a.hidden, padded = lstm_columns(hidden) / 4, width = a.directions * hidden;
    for (long r = 0; r < q.rows; ++r) {
      const long n = q.row.data[r].n, length = q.row.data[r].length, state = (q.direction * a.batch + n) * hidden;
      const long last = q.backwards ? 0 : length - 1;
      const T* h = length ? a.y + (last * a.batch + n) * width + q.direction * hidden : a.h0 ? a.h0 + state : nullptr;
      for (long j = 0; j < hidden; ++j) {
        a.h_n[state + j] = h ? h[j] : T(0);
        a.c_n[state + j] = q.cell.data[r * padded + j];
      }
      for (long t = length; t < a.time; ++t) {
        T* y = a.y + (t * a.batch + n) * width + q.direction * hidden;
        for (long j = 0; j < hidden; ++j) y[j] = T(0);
      }
    }
  }

  // Panels [p0, p1) of the pre-activations: bias + W_ih x.
  void input_product(const Sequence<T>& q, long count, const T* const* x, T* const* gates, long p0, long p1) const {
    for (long p = p0; p < p1; ++p) {
      const T* panel = a.panels_ih[q.direction] + p * a.input * kPanel;
      const T* next = p + 1 < p1 ? panel + a.input * kPanel : nullptr;
      for (long i = 0, t = 0; i < count; ++t) {
        const long rows = next_tile(count - i);
        const T* from[kTileRows];
        T* to[kTileRows];
        for (long r = 0; r < rows; ++r) {
          to[r] = gates[i + r] + p * kPanel;
          for (long j = 0; j < kPanel; j += S::W) S::store(to[r] + j, S::load(q.bias.data + p * kPanel + j));
        }
        for (long k0 = 0; k0 < a.input; k0 += kBlock) {
          for (long r = 0; r < rows; ++r) from[r] = x[i + r] + k0;
          const long depth = min_long(kBlock, a.input - k0), at = k0 * kPanel;
          tile_rows<T, false>(rows, from, depth, panel + at, to, kPanel, true, quarter(next ? next + at : next, depth, t));
        }
        i += rows;
      }
    }
  }

  // Step s of the hidden units of panels [p0, p1): the recurrent product onto the pre-activations, then the cell. Odd steps go
  // from the last panel to the first: where the weights outgrow the cache, what it still holds is read again first.
  void step(const Sequence<T>& q, long s, long live, T* const* gates, long p0, long p1) const {
    const long hidden = a.hidden, padded = lstm_columns(hidden) / 4, width = a.directions * hidden;
    Scratch<const T*> previous(live);
    Scratch<T*> output(live);
    bool recurrent = true;
    for (long r = 0; r < live; ++r) {
      const long n = q.row.data[r].n, t = q.time(r, s), before = q.backwards ? t + 1 : t - 1;
      output.data[r] = a.y + (t * a.batch + n) * width + q.direction * hidden;
      if (s > 0)
        previous.data[r] = a.y + (before * a.batch + n) * width + q.direction * hidden;
      else if (a.h0)
        previous.data[r] = a.h0 + (q.direction * a.batch + n) * hidden;
      else
        recurrent = false;
    }
    for (long turn = p0; turn < p1; ++turn) {
      const long p = s % 2 ? p1 - 1 - (turn - p0) : turn;
      const T* panel = a.panels_hh[q.direction] + p * hidden * kPanel;
      const T* next = turn + 1 == p1 ? nullptr : panel + (s % 2 ? -hidden : hidden) * kPanel;
      for (long i = 0, t = 0; i < live; ++t) {
        const long rows = next_tile(live - i);
        const T* from[kTileRows];
        T* to[kTileRows];
        for (long r = 0; r < rows; ++r) to[r] = gates[i + r] + p * kPanel;
        if (recurrent)
          for (long k0 = 0; k0 < hidden; k0 += kBlock) {
            for (long r = 0; r < rows; ++r) from[r] = previous.data[i + r] + k0;
            const long depth = min_long(kBlock, hidden - k0), at = k0 * kPanel;
            tile_rows<T, false>(rows, from, depth, panel + at, to, kPanel, true, quarter(next ? next + at : next, depth, t));
          }
        T* cell[kTileRows];
        for (long r = 0; r < rows; ++r) renew_cell(to[r], cell[r] = q.cell.data + (i + r) * padded + p * kUnits);
        for (long r = 0; r < rows; ++r) {
          const long at = (q.direction * a.time + q.time(i + r, s)) * a.batch + q.row.data[i + r].n;
          put_out(to[r], cell[r], output.data[i + r] + p * kUnits, a.cells ? a.cells + at * hidden + p * kUnits : nullptr,
                  min_long(kUnits, hidden - p * kUnits));
        }
        i += rows;
      }
    }
  }

  // The two halves of a unit (formulas.h) for 16 units of one row, of which `valid` are real: the cell and the gates in the
  // place of their pre-activations, then h. What h waits for is long, so that several rows' halves together take less.
  void renew_cell(T* gates, T* cell) const {
    for (long j = 0; j < kUnits; j += S::W) {
      V i = S::load(gates + j), f = S::load(gates + kUnits + j), g = S::load(gates + 2 * kUnits + j),
        o = S::load(gates + 3 * kUnits + j), c = S::load(cell + j);
      lstm_cell_state<S>(i, f, g, o, c);
      S::store(cell + j, c);
      S::store(gates + 3 * kUnits + j, o);
      if (!a.gates) continue;
      S::store(gates + j, i);
      S::store(gates + kUnits + j, f);
      S::store(gates + 2 * kUnits + j, g);
    }
  }
  void put_out(const T* gates, const T* cell, T* h, T* saved_cell, long valid) const {
    for (long j = 0; j < kUnits; j += S::W) {
      const V c = S::load(cell + j), hidden = lstm_hidden<S>(S::load(gates + 3 * kUnits + j), c);
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

// All rows of one direction, with the hidden units shared out.
template <class T>
void run_shared(const Forward<T>& forward, long direction, long shares) {
  const LstmArgs<T>& a = forward.a;
  const Sequence<T> q(a, forward.plan, direction, 0, 1);
  const long columns = lstm_columns(a.hidden), panels = columns / kPanel;
  const long chunk = forward.chunk(q);
  Scratch<T> chunk_gates(a.gates ? 0 : chunk * q.rows * columns);
  Scratch<const T*> inputs(q.steps * q.rows);
  Scratch<T*> gates(q.steps * q.rows);
  Scratch<long> first(q.steps + 1);  // per step: where its rows begin
  first.data[0] = 0;
  for (long s = 0; s < q.steps; ++s) first.data[s + 1] = first.data[s] + q.live(s);
  for (long s = 0; s < q.steps; s += chunk)
    forward.place(q, s, min_long(q.steps, s + chunk), chunk_gates.data, inputs.data + first.data[s],
                  gates.data + first.data[s]);
  const Shares steps(shares, q.steps);
  parallel(shares, [&](long own) {
    // A share's gates are read by that share alone, so it makes those of the next steps while others are still at the last.
    steps.run(own, [&](long s, long share) {
      const long p0 = share * panels / shares, p1 = (share + 1) * panels / shares, at = first.data[s];
      if (s % chunk == 0) {
        const long end = first.data[min_long(q.steps, s + chunk)];
        forward.input_product(q, end - at, inputs.data + at, gates.data + at, p0, p1);
      }
      forward.step(q, s, first.data[s + 1] - at, gates.data + at, p0, p1);
    });
  });
  forward.finish(q);
}

// One step of one row with weights that are packed nowhere.
template <class T>
void lstm_once(const LstmArgs<T>& a, const Forward<T>& forward) {
  const long hidden = a.hidden, columns = lstm_columns(hidden), panels = columns / kPanel;
  if (forward.plan.length(0) == 0) {
    for (long j = 0; j < a.directions * hidden; ++j) {
      a.y[j] = T(0);
      a.h_n[j] = a.h0 ? a.h0[j] : T(0);
      a.c_n[j] = a.c0 ? a.c0[j] : T(0);
    }
    return;
  }
  Scratch<T> own(a.gates ? 0 : a.directions * columns);
  share(a.directions * panels, 8 * a.directions * hidden * (a.input + hidden), [&](long task) {
    const long d = task / panels, p = task % panels, at = d * hidden + p * kUnits,
               valid = min_long(kUnits, hidden - p * kUnits);
    T* gates = (a.gates ? a.gates : own.data) + d * columns + p * kPanel;
    for (long c = 0; c < kPanel; ++c) {
      const long from = weight_row(p * kPanel + c, hidden);
      gates[c] = from >= 0 ? a.bias[d][from] : T(0);
    }
    add_product_once(a.w_ih[d], a.input, hidden, p, a.x, gates);
    if (a.h0) add_product_once(a.w_hh[d], hidden, hidden, p, a.h0 + d * hidden, gates);
    T cell[kUnits];
    for (long j = 0; j < kUnits; ++j) cell[j] = a.c0 && j < valid ? a.c0[at + j] : T(0);
    forward.renew_cell(gates, cell);
    forward.put_out(gates, cell, a.y + at, a.cells ? a.cells + at : nullptr, valid);
    for (long j = 0; j < valid; ++j) {
      a.h_n[at + j] = a.y[at + j];
      a.c_n[at + j] = cell[j];
    }
  });
}

template <class T>
void lstm(const LstmArgs<T>& a) {
  const Plan plan(a.batch, a.time, a.directions, a.lengths, num_threads(), 32);
  const Forward<T> forward = {a, plan};
  if (!a.panels_hh[0]) return lstm_once(a, forward);
  const long panels = lstm_columns(a.hidden) / kPanel, weights = 4 * a.hidden * a.hidden;
  if (a.batch * (weights + 4 * a.hidden * a.input) >= kWorthWaking &&
      shares_units(a.batch, a.directions, static_cast<double>(weights), panels, sizeof(T))) {
    for (long d = 0; d < a.directions; ++d) run_shared(forward, d, min_long(num_threads(), panels));
    return;
  }
  parallel(a.directions * plan.groups, [&forward](long task) { forward.run(task); });
}

template <class T>
void fill(Table<T>& table) {
  table.pack_lstm = pack_lstm<T>;
  table.lstm = lstm<T>;
}

}  // namespace

void fill_lstm(Kernels& kernels) {
  fill(kernels.f32);
  fill(kernels.f64);
}

}  // namespace RHEME_NS
}  // namespace rheme
