// The inference of lstm.cc with weights that are stored small. Compiled once per ISA, and again for ISAs with int8
// instructions.
//
// The layout, the order of rows and the two ways to share the work among threads are those of lstm.cc. With int8, each step's x
// is rounded by a scale of its own, and h, which lies in (-1, 1), by 1 / 127: each unit is rounded once, where it is made.
#include "lstm_plan.h"
#include "quantized.h"

namespace rheme {
namespace RHEME_NS {
namespace {

constexpr long kUnits = 16;  // per panel
constexpr float kHiddenScale = 1.0f / 127.0f;

// One direction of some rows through all their steps.
template <class P>
struct Sequence {
  typedef typename P::Element Element;
  typedef Simd<float> S;
  typedef S::V V;
  struct Row {
    long n, length;
  };

  const QuantizedLstmArgs& a;
  long direction, rows, steps, panels, pitch;
  bool backwards;
  Scratch<Row> row;  // by falling length
  Scratch<float> bias, first_scale, later_scale;
  Scratch<float> cell;      // [panels][rows][16]: what a tile of rows needs lies together, as in the gates
  Scratch<Element> states;  // [2][rows][pitch]: h before the even steps, and before the odd ones

  Sequence(const QuantizedLstmArgs& args, const Plan& plan, long direction_, long group, long groups)
      : a(args),
        direction(direction_),
        rows((a.batch - group + groups - 1) / groups),
        steps(0),
        panels(lstm_columns(a.hidden) / kPanel),
        pitch(P::pitch(panels * kUnits)),
        backwards(direction_ == 1 || a.reverse),
        row(rows),
        bias(panels * kPanel),
        first_scale(rows),
        later_scale(rows),
        cell(panels * rows * kUnits),
        states(P::kCopies ? 2 * rows * pitch : 0) {
    const long hidden = a.hidden;
    for (long r = 0; r < rows; ++r) {
      const long n = plan.order.data[r * groups + group], state = (direction * a.batch + n) * hidden;
      row.data[r] = {n, plan.length(n)};
      for (long p = 0; p < panels; ++p) {
        const long units = a.c0 ? min_long(kUnits, hidden - p * kUnits) : 0;
        for (long j = 0; j < kUnits; j += S::W)
          S::store(cells(p, r) + j, units ? S::load_part(a.c0 + state + p * kUnits + j, units - j) : S::set(0.0f));
      }
      later_scale.data[r] = kHiddenScale;
      if (P::kCopies && a.h0) first_scale.data[r] = P::prepare_state(a.h0 + state, hidden, states.data + r * pitch);
    }
    for (long p = 0; p < panels; ++p)
      for (long gate = 0; gate < 4; ++gate) {
        const float* from = a.bias[direction] + gate * hidden + p * kUnits;
        float* to = bias.data + p * kPanel + gate * kUnits;
        const long units = min_long(kUnits, hidden - p * kUnits);
        for (long j = 0; j < kUnits; j += S::W) S::store(to + j, S::load_part(from + j, units - j));
      }
    if (rows) steps = row.data[0].length;
  }

  long time(long r, long s) const { return backwards ? row.data[r].length - 1 - s : s; }
  long live(long s) const {  // rows that have a step s: a prefix
    long n = rows;
    while (n && row.data[n - 1].length <= s) --n;
    return n;
  }
  float* cells(long p, long r) const { return cell.data + (p * rows + r) * kUnits; }
  float* output(long r, long t) const {
    return a.y + (t * a.batch + row.data[r].n) * a.directions * a.hidden + direction * a.hidden;
  }

  // The inputs of the live rows of steps [s0, s1), in order; returns how many there are.
  long place(long s0, long s1, PreparedRows<P>& x) const {
    long count = 0;
    for (long s = s0; s < s1; ++s)
      for (long r = 0; r < rows && row.data[r].length > s; ++r)
        x.set(count++, a.x + (time(r, s) * a.batch + row.data[r].n) * a.input, a.input);
    return count;
  }

  // Panels [p0, p1) of bias + W_ih x, into gates [panels][count][64].
  void input_product(const PreparedRows<P>& x, long count, float* gates, long p0, long p1) const {
    for (long p = p0; p < p1; ++p) {
      const Panel panel = panel_of(a.w_ih[direction], p);
      for (long i = 0; i < count;) {
        const long n = next_tile(count - i);
        const float* start[kTileRows];
        float* to[kTileRows];
        for (long r = 0; r < n; ++r) {
          start[r] = bias.data + p * kPanel;
          to[r] = gates + (p * count + i + r) * kPanel;
        }
        tile_rows<P>(n, x.row.data + i, x.scale.data + i, panel, start, to);
        i += n;
      }
    }
  }

  // Step s of the hidden units of panels [p0, p1): the recurrent product onto the gates of the live rows, then the cell. Odd
  // steps go from the last panel to the first: where the weights outgrow the cache, what it still holds is read again first.
  // gates [panels][stride][64] begin with the first row of this step.
  void step(long s, float* gates, long stride, long p0, long p1) const {
    const long count = live(s);
    const bool recurrent = s > 0 || a.h0;
    const float* scale = s > 0 ? later_scale.data : first_scale.data;
    const Element* before = states.data + s % 2 * rows * pitch;
    Element* after = states.data + (s + 1) % 2 * rows * pitch;
    // What an h waits for is long. So its two halves are done for many units at once, that they overlap.
    const long group = max_long(1, 8 / max_long(1, count));
    for (long done = 0; done < p1 - p0; done += group) {
      const long end = min_long(p1 - p0, done + group);
      for (long turn = done; recurrent && turn < end; ++turn) {
        const long p = s % 2 ? p1 - 1 - turn : p0 + turn;
        const Panel panel = panel_of(a.w_hh[direction], p);
        for (long i = 0; i < count;) {
          const long n = next_tile(count - i);
          const Element* from[kTileRows];
          const float* start[kTileRows];
          float* to[kTileRows];
          for (long r = 0; r < n; ++r) {
            start[r] = to[r] = gates + (p * stride + i + r) * kPanel;
            if constexpr (P::kCopies)
              from[r] = before + (i + r) * pitch;
            else
              from[r] = s > 0 ? output(i + r, time(i + r, s - 1)) : a.h0 + (direction * a.batch + row.data[i + r].n) * a.hidden;
          }
          tile_rows<P>(n, from, scale + i, panel, start, to);
          i += n;
        }
      }
      const long low = s % 2 ? p1 - end : p0 + done, high = s % 2 ? p1 - done : p0 + end;
      for (long p = low; p < high; ++p)
        for (long r = 0; r < count; ++r) renew_cell(gates + (p * stride + r) * kPanel, cells(p, r));
      for (long p = low; p < high; ++p)
        for (long r = 0; r < count; ++r)
          put_out(gates + (p * stride + r) * kPanel, cells(p, r), output(r, time(r, s)) + p * kUnits,
                  P::kCopies ? after + r * pitch + p * kUnits : nullptr, min_long(kUnits, a.hidden - p * kUnits));
    }
  }

  // The last states, and zeros past the rows' ends.
  void finish() const {
    for (long r = 0; r < rows; ++r) {
      const long n = row.data[r].n, length = row.data[r].length, state = (direction * a.batch + n) * a.hidden;
      const float* h = length ? output(r, backwards ? 0 : length - 1) : a.h0 ? a.h0 + state : nullptr;
      for (long j = 0; j < a.hidden; ++j) a.h_n[state + j] = h ? h[j] : 0.0f;
      for (long p = 0; p < panels; ++p)
        for (long j = 0; j < min_long(kUnits, a.hidden - p * kUnits); ++j) a.c_n[state + p * kUnits + j] = cells(p, r)[j];
      for (long t = length; t < a.time; ++t) {
        float* y = output(r, t);
        for (long j = 0; j < a.hidden; ++j) y[j] = 0.0f;
      }
    }
  }

 private:
  // The two halves of a unit (formulas.h) for 16 units of one row: the cell, and the gate o in the place of its pre-activation;
  // then h, of which `valid` units are real.
  RHEME_FN void renew_cell(float* gates, float* cells) {
    for (long j = 0; j < kUnits; j += S::W) {
      V i = S::load(gates + j), f = S::load(gates + kUnits + j), g = S::load(gates + 2 * kUnits + j),
        o = S::load(gates + 3 * kUnits + j), c = S::load(cells + j);
      lstm_cell_state<S>(i, f, g, o, c);
      S::store(gates + 3 * kUnits + j, o);
      S::store(cells + j, c);
    }
  }
  RHEME_FN void put_out(const float* gates, const float* cells, float* y, Element* state, long valid) {
    alignas(64) float made[kUnits];
    for (long j = 0; j < kUnits; j += S::W) {
      const V hidden = lstm_hidden<S>(S::load(gates + 3 * kUnits + j), S::load(cells + j));
      S::store(made + j, hidden);
      if (valid - j >= S::W)
        S::store(y + j, hidden);
      else if (valid > j)
        S::store_part(y + j, hidden, valid - j);
    }
    P::prepare_unit(made, state);
  }
};

// Some rows of one direction through all steps, by one thread.
template <class P>
void run_rows(const QuantizedLstmArgs& a, const Plan& plan, long task) {
  const Sequence<P> q(a, plan, task / plan.groups, task % plan.groups, plan.groups);
  // The input product covers some steps at a time: enough rows to reuse each panel, few enough to stay in the L2 cache.
  const long chunk = max_long(1, min_long(q.steps, ceil_div(48, max_long(1, q.rows))));
  PreparedRows<P> x(chunk * q.rows, q.a.input);
  Scratch<float> gates(chunk * q.rows * q.panels * kPanel);
  for (long s0 = 0; s0 < q.steps; s0 += chunk) {
    const long s1 = min_long(q.steps, s0 + chunk);
    const long count = q.place(s0, s1, x);
    q.input_product(x, count, gates.data, 0, q.panels);
    float* at = gates.data;
    for (long s = s0; s < s1; ++s) {
      q.step(s, at, count, 0, q.panels);
      at += q.live(s) * kPanel;
    }
  }
  q.finish();
}

template <class P>
void run_shared(const QuantizedLstmArgs& a, const Plan& plan, long direction, long shares) {
  const Sequence<P> q(a, plan, direction, 0, 1);
  Scratch<long> first(q.steps + 1);
  first.data[0] = 0;
  for (long s = 0; s < q.steps; ++s) first.data[s + 1] = first.data[s] + q.live(s);
  const long count = first.data[q.steps];
  PreparedRows<P> x(count, q.a.input);
  Scratch<float> gates(count * q.panels * kPanel);
  q.place(0, q.steps, x);
  const Shares steps(shares, q.steps);
  parallel(shares, [&](long own) {
    // A share's gates are read by that share alone, so its first step may start while others still make theirs; whoever takes
    // over a share that its owner never came to makes the inputs first.
    steps.run(own, [&](long s, long share) {
      const long p0 = share * q.panels / shares, p1 = (share + 1) * q.panels / shares;
      if (s == 0) q.input_product(x, count, gates.data, p0, p1);
      q.step(s, gates.data + first.data[s] * kPanel, count, p0, p1);
    });
  });
  q.finish();
}

template <class P>
void run(const QuantizedLstmArgs& a) {
  const long step = 4 * a.batch * a.hidden * a.hidden, work = a.time * (step + 4 * a.batch * a.hidden * a.input);
  const long threads = a.directions * work < 1500000 ? 1 : num_threads();  // less is done before another thread wakes up
  const Plan plan(a.batch, a.time, a.directions, a.lengths, threads, 12);
  if (threads == 1) {
    for (long d = 0; d < a.directions; ++d) run_rows<P>(a, plan, d);
    return;
  }
  // Below two rows a thread the weights, not the rows, are worth sharing out: where all steps take some 50 us, and each is long
  // beside the wait for the others at its end (with 256 units one thread was as quick as two, with 512 two were 1.6 times so).
  if (a.directions < threads && a.batch < 2 * threads && step >= 130000) {
    const long shares = min_long(threads, lstm_columns(a.hidden) / kPanel);
    for (long d = 0; d < a.directions; ++d) run_shared<P>(a, plan, d, shares);
    return;
  }
  parallel(a.directions * plan.groups, [&](long task) { run_rows<P>(a, plan, task); });
}

void lstm(const QuantizedLstmArgs& a) {
  if (a.w_hh[0].half)
    run<Half>(a);
  else
    run<Int8>(a);
}

}  // namespace

void fill_quantized_lstm(Kernels& kernels) { kernels.quantized.lstm = lstm; }

}  // namespace RHEME_NS
}  // namespace rheme
