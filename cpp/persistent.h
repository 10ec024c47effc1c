// What the persistent LSTMs share: how a hidden size is cut among the blocks that hold its weights, the rows of the batch that
// they run together, and a row's part of a step. Compiled for one hidden size: RHEME_HIDDEN, and RHEME_CTAS blocks.
#pragma once

#include "cluster.h"

constexpr int kHidden = RHEME_HIDDEN, kCtas = RHEME_CTAS, kRows = 8;
constexpr int kUnits = kHidden / kCtas, kGates = 4 * kUnits;
static_assert(kUnits * kCtas == kHidden, "whole units");

// A row of the batch in a direction: its place beside others, which of its times are steps, where its numbers stand.
struct Sequence {
  int r, n, length, steps;  // steps: of the longest row of its group
  int time, batch, directions;
  bool exists, backwards;

  // Row `column` of a group of kRows. `order`: the rows by ascending length, or null where all are as long.
  RHEME_FN Sequence of(int r, int group, int column, int time, int batch, int directions, bool reverse, const int64_t* lengths,
                       const int64_t* order) {
    const int end = (group + 1) * kRows, last = (end < batch ? end : batch) - 1, place = group * kRows + column;
    const bool exists = place <= last;
    const int n = !exists ? 0 : order ? int(order[place]) : place, longest = order ? int(order[last]) : last;
    const auto clipped = [=](int row) { return int(length_of(lengths, row, time)); };
    return {r, n, exists ? clipped(n) : 0, clipped(longest), time, batch, directions, exists, r == 1 || reverse};
  }
  // Row `column` of the group that this block's cluster runs: one direction's groups stand before the other's.
  RHEME_FN Sequence of_cluster(int column, int64_t time, int64_t batch, int64_t directions, int64_t reverse,
                               const int64_t* lengths, const int64_t* order) {
    const int groups = int((batch + kRows - 1) / kRows), group = int(blockIdx.x) / kCtas;
    return of(group / groups, group % groups, column, int(time), int(batch), int(directions), reverse != 0, lengths, order);
  }
  __device__ int time_of(int s) const { return backwards ? steps - 1 - s : s; }
  __device__ int64_t state(int j) const { return (int64_t(r) * batch + n) * kHidden + j; }  // in h0, c0, h_n, ...
  __device__ int64_t at(int t) const { return (int64_t(r) * time + t) * batch + n; }        // a row of gates, of cells
  __device__ int64_t out(int t, int j) const { return ((int64_t(t) * batch + n) * directions + r) * kHidden + j; }  // in y

  // The gates of a unit, 4 apart by kHidden, where the row has this time.
  __device__ void read_gates(const float* gates, int t, int j, float* x) const {
    if (t >= length) return;
    const float* from = gates + at(t) * 4 * kHidden + j;
    for (int i = 0; i < 4; ++i) x[i] = from[i * kHidden];
  }
  __device__ void write_gates(float* gates, int t, int j, const float* x) const {
    float* to = gates + at(t) * 4 * kHidden + j;
    for (int i = 0; i < 4; ++i) to[i * kHidden] = x[i];
  }
  // What a step leaves: its output, and, where the backward is to come, gates and cell.
  __device__ void write_step(int t, int j, const float* g, float c, float h, float* gates, float* cells, float* y) const {
    if (!exists) return;
    const bool live = t < length;
    y[out(t, j)] = live ? h : 0.0f;
    if (!live || !cells) return;
    write_gates(gates, t, j, g);
    cells[at(t) * kHidden + j] = c;
  }
  // What stands past the steps of the group.
  __device__ void write_rest(int j, float* y) const {
    for (int t = steps; t < time; ++t) y[out(t, j)] = 0.0f;
  }
  // A step backward: g, the gradients of a unit's pre-activations. d_hidden, d_cell: in, of the state after it; out, of the
  // state before it without W_hh^T g, which is added next. Where the row has no such time g is 0 and nothing changes.
  __device__ void gradients(int t, int j, const float* dy, const float* gates, const float* cells, const float* c0, float* g,
                            float& d_hidden, float& d_cell) const {
    for (int i = 0; i < 4; ++i) g[i] = 0.0f;
    if (t >= length) return;
    read_gates(gates, t, j, g);
    const int before = backwards ? t + 1 : t - 1;
    const bool first = before < 0 || before >= length;
    const float previous = first ? (c0 ? c0[state(j)] : 0.0f) : cells[at(before) * kHidden + j];
    lstm_cell_backward<S>(g[0], g[1], g[2], g[3], cells[at(t) * kHidden + j], previous, dy[out(t, j)] + d_hidden, d_cell);
    d_hidden = 0.0f;
  }
  __device__ void clear_rest(int j, float* dgates) const {
    const float zero[4] = {0, 0, 0, 0};
    for (int t = steps; t < time; ++t) write_gates(dgates, t, j, zero);
  }
};

struct alignas(16) Quad {
  float x[4];
};

// sum[n] += w x[n] for the 8 rows.
RHEME_FN void multiply(float* sum, float w, const float* x) {
  const Quad low = *reinterpret_cast<const Quad*>(x), high = *reinterpret_cast<const Quad*>(x + 4);
#pragma unroll
  for (int n = 0; n < 4; ++n) {
    sum[n] = fmaf(w, low.x[n], sum[n]);
    sum[n + 4] = fmaf(w, high.x[n], sum[n + 4]);
  }
}

RHEME_FN uint16_t bf16(float x) { return uint16_t(bf16_pair(x, 0.0f)); }
