// LSTM over whole sequences, one layer, one or two directions. Compiled once per ISA.
//
// Layout: panels of 64 columns hold the gates i f g o of 16 units, so one tile of the product has all that a unit needs and the
// activations run on it while it is in the L1 cache. Rows are independent: each task owns some rows of one direction and runs
// them through all steps with no barrier. Rows are dealt out by falling length, so that at each step the rows still alive are a
// prefix and the tasks are even. Weight gradients are three products over all valid steps after the loop.
#include "lstm_weights.h"

namespace rheme {
namespace RHEME_NS {
namespace {

template <class T>
void pack_lstm(const PackLstmArgs<T>& a) {
  pack_gates(a.w_ih, a.input, a.hidden, a.panels_ih);
  pack_gates(a.w_hh, a.hidden, a.hidden, a.panels_hh);
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
    // The input product covers some steps at a time: enough rows to reuse each panel, few enough to stay in the L2 cache.
    const long chunk = max_long(1, ceil_div(48, max_long(1, q.rows)));
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
      for (long i = 0; i < count;) {
        const long rows = next_tile(count - i);
        const T* from[kTileRows];
        T* to[kTileRows];
        for (long r = 0; r < rows; ++r) {
          to[r] = gates[i + r] + p * kPanel;
          for (long j = 0; j < kPanel; j += S::W) S::store(to[r] + j, S::load(q.bias.data + p * kPanel + j));
        }
        for (long k0 = 0; k0 < a.input; k0 += kBlock) {
          for (long r = 0; r < rows; ++r) from[r] = x[i + r] + k0;
          tile_rows<T, false>(rows, from, min_long(kBlock, a.input - k0), panel + k0 * kPanel, to, kPanel, true);
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
          T* c = q.cell.data + (i + r) * padded + p * kUnits;
          const long at = (q.direction * a.time + q.time(i + r, s)) * a.batch + q.row.data[i + r].n;
          activate(to[r], c, output.data[i + r] + p * kUnits, a.cells ? a.cells + at * hidden + p * kUnits : nullptr,
                   min_long(kUnits, hidden - p * kUnits));
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

// A few rows on several threads: each thread keeps the recurrent weights of its own hidden units in its L2 cache for all steps.
// A step of a share of the units may start when all shares have done the step before. A thread takes its own share; one that it
// finds waiting for long it takes from its owner, so that a thread kept off its core delays the others without stopping them.
template <class T>
struct Stationary {
  const Forward<T>& forward;
  const Sequence<T>& q;
  T* const* gates;    // of the live rows, step after step
  const long* first;  // per step: where its rows begin; one more for the end
  long shares;
  long* done;     // shares done, all steps together
  long* claimed;  // per share, a cache line apart: steps taken

  void run(long own) const {
    const long panels = lstm_columns(forward.a.hidden) / kPanel;
    long patience = kPatience;
    for (long s = 0; s < q.steps; ++s) {
      long share = own, spins = 0;
      while (__atomic_load_n(done, __ATOMIC_ACQUIRE) < s * shares) pause();
      while (__atomic_load_n(done, __ATOMIC_ACQUIRE) < (s + 1) * shares) {
        long expected = s;
        if (__atomic_compare_exchange_n(claimed + share * kLine, &expected, s + 1, false, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED)) {
          forward.step(q, s, first[s + 1] - first[s], gates + first[s], share * panels / shares, (share + 1) * panels / shares);
          __atomic_fetch_add(done, 1, __ATOMIC_ACQ_REL);
        } else {
          if (++spins > patience) {
            share = (share + 1) % shares;
            patience = kShort;  // its owner is away, or this thread runs alone
          }
          pause();
        }
      }
    }
  }

  static constexpr long kLine = 8, kPatience = 5000, kShort = 50;

 private:
  static void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  }
};

template <class T>
void lstm_stationary(const Forward<T>& forward, long direction, long shares) {
  const LstmArgs<T>& a = forward.a;
  const Sequence<T> q(a, forward.plan, direction, 0, 1);
  const long columns = lstm_columns(a.hidden), panels = columns / kPanel;
  Scratch<T> scratch(a.gates ? 0 : q.steps * q.rows * columns);
  Scratch<const T*> inputs(q.steps * q.rows);
  Scratch<T*> gates(q.steps * q.rows);
  Scratch<long> first(q.steps + 1), counters((shares + 1) * Stationary<T>::kLine);
  const long count = forward.place(q, 0, q.steps, scratch.data, inputs.data, gates.data);
  first.data[0] = 0;
  for (long s = 0; s < q.steps; ++s) first.data[s + 1] = first.data[s] + q.live(s);
  for (long i = 0; i < (shares + 1) * Stationary<T>::kLine; ++i) counters.data[i] = 0;
  const Stationary<T> stationary = {
      forward, q, gates.data, first.data, shares, counters.data, counters.data + Stationary<T>::kLine};
  parallel(shares, [&](long share) {
    const long p0 = share * panels / shares, p1 = (share + 1) * panels / shares;
    forward.input_product(q, count, inputs.data, gates.data, p0, p1);
  });
  parallel(shares, [&](long share) { stationary.run(share); });
  forward.finish(q);
}

// Calls body(0) ... body(tasks - 1), on all threads where there is work for them.
template <class F>
void share(long tasks, long operations, F body) {
  if (operations >= kWorthSharing) return parallel(tasks, body);
  for (long i = 0; i < tasks; ++i) body(i);
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
    forward.activate(gates, cell, a.y + at, a.cells ? a.cells + at : nullptr, valid);
    for (long j = 0; j < valid; ++j) {
      a.h_n[at + j] = a.y[at + j];
      a.c_n[at + j] = cell[j];
    }
  });
}

template <class T>
void lstm(const LstmArgs<T>& a) {
  const Plan plan(a.batch, a.time, a.directions, a.lengths);
  const Forward<T> forward = {a, plan};
  if (!a.panels_hh[0]) return lstm_once(a, forward);
  // Below two rows a thread the weights, not the rows, are worth sharing out; a tiny layer is done before a thread wakes up.
  const long threads = num_threads();
  if (a.directions < threads && a.batch < 2 * threads && a.batch * a.hidden * (a.hidden + a.input) >= 32768) {
    const long shares = min_long(threads, lstm_columns(a.hidden) / kPanel);
    for (long d = 0; d < a.directions; ++d) lstm_stationary(forward, d, shares);
    return;
  }
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
                        dc.data + r * padded + p * kUnits, step_gates.data[r] + p * kPanel,
                        min_long(kUnits, hidden - p * kUnits));
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
  const Plan plan(a.batch, a.time, a.directions, a.lengths);
  if (steps == 1 && plan.length(0) == 1) return lstm_backward_once(a, plan);
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
