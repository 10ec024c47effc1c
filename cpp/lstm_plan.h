// Two ways to give a recurrent layer's work to threads: rows of their own through all steps, with no barrier, or hidden units
// of their own at every step, whose weights then stay in a thread's cache. Included by kernel files only; internal linkage
// throughout.
#pragma once

#include "gemm.h"

namespace rheme {
namespace RHEME_NS {
namespace {

// Rows by falling length (equal ones in order), so that at each step the rows still alive are a prefix, and the split of
// directions x rows into tasks: row r of group g is order[r * groups + g].
struct Plan {
  long batch, time, groups;
  const int64_t* lengths;
  Scratch<long> order;

  Plan(long batch_, long time_, long directions, const int64_t* lengths_, long threads, long least_rows)
      : batch(batch_), time(time_), groups(ceil_div(threads, directions)), lengths(lengths_), order(batch_) {
    // Where each gets `least_rows`, two tasks a thread: one that is kept off its core leaves the other half to the rest.
    if (threads > 1 && batch >= 2 * least_rows * groups) groups *= 2;
    groups = max_long(1, min_long(batch, groups));
    if (!lengths) {
      for (long n = 0; n < batch; ++n) order.data[n] = n;
      return;
    }
    Scratch<long> start(time + 2);  // a counting sort
    for (long l = 0; l <= time + 1; ++l) start.data[l] = 0;
    for (long n = 0; n < batch; ++n) ++start.data[time - lengths[n] + 1];
    for (long l = 0; l <= time; ++l) start.data[l + 1] += start.data[l];
    for (long n = 0; n < batch; ++n) order.data[start.data[time - lengths[n]]++] = n;
  }
  long length(long n) const { return lengths ? lengths[n] : time; }
};

// Steps done together: a share of a step starts when all shares have done the step before. A thread takes its own share; one
// that it finds waiting for long it takes from its owner, and when there is none to take it leaves its core for a while, so
// that a thread kept off its core by a neighbour delays the others without stopping them.
//
// A line of the cache takes 0.3 us from core to core, so each share has two of its own: one that its owner alone looks at, for
// as long as all goes well, and one that it writes once a step and the others read.
struct Shares {
  static constexpr long kLine = 8, kPatience = 5000, kShort = 50, kRest = 10000;
  long count, steps;
  Scratch<long> counters;

  Shares(long count_, long steps_) : count(count_), steps(steps_), counters(2 * count_ * kLine) {
    for (long i = 0; i < 2 * count * kLine; ++i) counters.data[i] = 0;
  }

  // body(step, share) for all steps, by this thread and those that run it with other shares as their own.
  template <class F>
  void run(long own, F body) const {
    long* claimed = counters.data;               // per share: steps taken
    long* done = counters.data + count * kLine;  // per share: steps done
    long patience = kPatience;
    for (long s = 0; s < steps; ++s) {
      long share = own, spins = 0;
      for (long waits_for = 0; waits_for < count;) {
        if (__atomic_load_n(done + waits_for * kLine, __ATOMIC_ACQUIRE) > s) {
          ++waits_for;
          continue;
        }
        long expected = s;
        if (__atomic_load_n(claimed + share * kLine, __ATOMIC_RELAXED) == s &&
            __atomic_compare_exchange_n(claimed + share * kLine, &expected, s + 1, false, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED)) {
          body(s, share);
          __atomic_store_n(done + share * kLine, s + 1, __ATOMIC_RELEASE);
          spins = 0;
          continue;
        }
        if (++spins > kRest) {
          rest();
        } else if (spins > patience) {
          share = (share + 1) % count;
          patience = kShort;  // its owner is away, or this thread runs alone
        }
        pause();
      }
    }
  }

 private:
  static void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  }
};

// Calls body(0) ... body(tasks - 1), on all threads where there is work for them.
template <class F>
void share(long tasks, long operations, F body) {
  if (operations >= kWorthSharing) return parallel(tasks, body);
  for (long i = 0; i < tasks; ++i) body(i);
}

constexpr long kWorthWaking = 131072;  // weights times rows of a step; less is done before another thread wakes up

// What a step of some rows takes a thread, in multiply-adds: the products, and as many as fit into the time of reading the
// weights once. The bandwidths are those of a Zen 5 core (1 MB of L2; `benchmarks/peers/limits.cc`): 253 and 124 GB/s beside
// 144 thousand million multiply-adds a second.
static inline double step_cost(double weights, long rows, double bytes_each) {
  constexpr double kL2 = 1 << 20, kFromL2 = 0.57, kFromL3 = 1.16;  // multiply-adds a byte
  const double bytes = weights * bytes_each;
  return weights * static_cast<double>(rows) + bytes * (bytes <= kL2 ? kFromL2 : kFromL3);
}

// Whether hidden units rather than rows are shared out. `weights` are those of the recurrent product of one direction, in
// `panels` that are not divided.
static inline bool shares_units(long batch, long directions, double weights, long panels, double bytes_each) {
  // 1 us a step; and where both take as long, rows, which need nobody's pace but their own (`benchmarks/scaling.py`).
  constexpr double kBarrier = 150000, kLate = 1.1;
  const long threads = num_threads();
  if (threads < 2 || panels < threads || directions >= threads) return false;
  if (const int forced = lstm_plan()) return forced == 2;
  const double by_rows = step_cost(weights, ceil_div(batch * directions, threads), bytes_each);
  const double largest = weights * static_cast<double>(ceil_div(panels, threads)) / static_cast<double>(panels);
  return kLate * static_cast<double>(directions) * (step_cost(largest, batch, bytes_each) + kBarrier) < by_rows;
}

}  // namespace
}  // namespace RHEME_NS
}  // namespace rheme
