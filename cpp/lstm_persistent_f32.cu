// The persistent LSTM in float throughout: weights in registers, products by fused multiply-adds, the exchange as in
// lstm_persistent.cu. For hidden sizes whose weights fit into the registers of 16 blocks.
//
// Forward, a thread holds a quarter of a row of W_hh; backward, a part of a column of the block's own rows. Either way a thread
// has kHidden / 4 weights, reads h (or dgates) of 8 rows as two broadcasts each, and the parts are added in order.
#include "persistent.h"

constexpr int kThreads = 16 * kUnits, kPairs = kUnits * kRows;
constexpr int kWeights = kHidden / 4;       // of a thread
constexpr int kParts = kThreads / kHidden;  // backward: of a column
static_assert(kUnits % 8 == 0 && kCtas % 4 == 0 && kThreads % 32 == 0 && kParts * kHidden == kThreads,
              "whole warps, whole columns");

extern "C" __global__ void __launch_bounds__(kThreads, 1) RHEME_CLUSTER(kCtas)
    lstm_persistent(int64_t time, int64_t batch, int64_t directions, int64_t reverse, const int64_t* lengths,
                    const int64_t* order, const float* w_hh, const float* bias, const float* h0, const float* c0, float* gates,
                    float* cells, float* h_n, float* c_n, float* y) {
  float* hidden = dynamic_shared<float>();     // [2][kHidden][kRows]: h before the even steps, before the odd ones
  float* sums = hidden + 2 * kHidden * kRows;  // [4][kRows][kGates]: the parts of the pre-activations
  float* staged = sums + 4 * kRows * kGates;   // [kUnits][kRows]: the new h of this block
  const uint32_t rank = cluster_rank();
  const int row = threadIdx.x % kGates, part = threadIdx.x / kGates;  // of W_hh: gate row / kUnits, unit row % kUnits
  const int unit = threadIdx.x % kUnits, column = threadIdx.x / kUnits % kRows, j = int(rank) * kUnits + unit;
  const bool pair = threadIdx.x < kPairs;  // these threads have a unit of a row of the batch
  const auto row_of = [=](int n) { return Sequence::of_cluster(n, time, batch, directions, reverse, lengths, order); };
  const Sequence q = row_of(column);
  float w[kWeights];
  const float* from = w_hh + (q.r * 4 * kHidden + row / kUnits * kHidden + int(rank) * kUnits + row % kUnits) * kHidden;
#pragma unroll
  for (int k = 0; k < kWeights; ++k) w[k] = from[part * kWeights + k];
  for (int i = threadIdx.x; i < kRows * kHidden; i += kThreads) {
    const Sequence other = row_of(i % kRows);
    hidden[i] = h0 && other.exists ? h0[other.state(i / kRows)] : 0.0f;
  }
  const int64_t state = q.state(j);
  float h = h0 && q.exists ? h0[state] : 0.0f, c = c0 && q.exists ? c0[state] : 0.0f, b[4], x[4] = {0, 0, 0, 0};
  for (int i = 0; i < 4; ++i) b[i] = bias[(q.r * 4 + i) * kHidden + j];
  if (pair && q.steps) q.read_gates(gates, q.time_of(0), j, x);
  cluster_arrive();  // every block runs, and its shared memory may be written
  cluster_wait();
  for (int s = 0; s < q.steps; ++s) {
    const float* before = hidden + s % 2 * kHidden * kRows + part * kWeights * kRows;
    float* after = hidden + (s + 1) % 2 * kHidden * kRows;
    float sum[kRows] = {0, 0, 0, 0, 0, 0, 0, 0};
#pragma unroll
    for (int k = 0; k < kWeights; ++k) multiply(sum, w[k], before + k * kRows);
    for (int n = 0; n < kRows; ++n) sums[(part * kRows + n) * kGates + row] = sum[n];
    __syncthreads();
    const int t = q.time_of(s);
    float g[4];
    if (pair) {
      for (int i = 0; i < 4; ++i) {
        g[i] = x[i] + b[i];
        for (int p = 0; p < 4; ++p) g[i] += sums[(p * kRows + column) * kGates + i * kUnits + unit];
      }
      if (t < q.length) lstm_cell<S>(g[0], g[1], g[2], g[3], c, h);
      staged[unit * kRows + column] = h;
    }
    __syncthreads();
    for (int i = threadIdx.x; i < 2 * kHidden; i += kThreads) {  // 16 bytes each, to every block
      const int chunk = i % (2 * kUnits) * 4;
      cluster_store(after + int(rank) * kPairs + chunk, uint32_t(i / (2 * kUnits)),
                    *reinterpret_cast<const Words*>(staged + chunk));
    }
    cluster_arrive();
    if (pair) q.write_step(t, j, g, c, h, gates, cells, y);
    if (pair && s + 1 < q.steps) q.read_gates(gates, q.time_of(s + 1), j, x);
    cluster_wait();
  }
  if (!pair || !q.exists) return;
  h_n[state] = h;
  c_n[state] = c;
  q.write_rest(j, y);
}

extern "C" __global__ void __launch_bounds__(kThreads, 1) RHEME_CLUSTER(kCtas)
    lstm_persistent_backward(int64_t time, int64_t batch, int64_t directions, int64_t reverse, const int64_t* lengths,
                             const int64_t* order, const float* w_hh, const float* dy, const float* gates, const float* cells,
                             const float* c0, float* dgates, float* dh, float* dc) {
  float* parts = dynamic_shared<float>();    // [2][kCtas][kUnits][kRows]: of dh, from every block
  float* own = parts + 2 * kHidden * kRows;  // [kGates][kRows]: this block's dgates
  float* sums = own + kGates * kRows;        // [kParts][kRows][kHidden]
  const uint32_t rank = cluster_rank();
  const int to = threadIdx.x % kHidden, part = threadIdx.x / kHidden;
  const int unit = threadIdx.x % kUnits, column = threadIdx.x / kUnits % kRows, j = int(rank) * kUnits + unit;
  const bool pair = threadIdx.x < kPairs;
  const auto row_of = [=](int n) { return Sequence::of_cluster(n, time, batch, directions, reverse, lengths, order); };
  const Sequence q = row_of(column);
  float w[kWeights];
#pragma unroll
  for (int k = 0; k < kWeights; ++k) {
    const int row = part * kWeights + k;
    w[k] = w_hh[(q.r * 4 * kHidden + row / kUnits * kHidden + int(rank) * kUnits + row % kUnits) * kHidden + to];
  }
  const int64_t state = q.state(j);
  float d_hidden = pair && q.exists ? dh[state] : 0.0f, d_cell = pair && q.exists ? dc[state] : 0.0f;
  cluster_arrive();
  cluster_wait();
  for (int s = q.steps - 1; s >= 0; --s) {
    const int t = q.time_of(s);
    float g[4];
    if (pair) {
      q.gradients(t, j, dy, gates, cells, c0, g, d_hidden, d_cell);
      for (int i = 0; i < 4; ++i) own[(i * kUnits + unit) * kRows + column] = g[i];
    }
    __syncthreads();
    float sum[kRows] = {0, 0, 0, 0, 0, 0, 0, 0};
#pragma unroll
    for (int k = 0; k < kWeights; ++k) multiply(sum, w[k], own + (part * kWeights + k) * kRows);
    for (int n = 0; n < kRows; ++n) sums[(part * kRows + n) * kHidden + to] = sum[n];
    __syncthreads();
    float* there = parts + s % 2 * kHidden * kRows;
    for (int i = threadIdx.x; i < kHidden; i += kThreads) {
      Quad low, high;
      for (int n = 0; n < 4; ++n) {
        low.x[n] = sums[n * kHidden + i];
        high.x[n] = sums[(n + 4) * kHidden + i];
        for (int p = 1; p < kParts; ++p) {
          low.x[n] += sums[(p * kRows + n) * kHidden + i];
          high.x[n] += sums[(p * kRows + n + 4) * kHidden + i];
        }
      }
      float* place = there + (int(rank) * kUnits + i % kUnits) * kRows;
      cluster_store(place, uint32_t(i / kUnits), low.x[0], low.x[1]);
      cluster_store(place + 2, uint32_t(i / kUnits), low.x[2], low.x[3]);
      cluster_store(place + 4, uint32_t(i / kUnits), high.x[0], high.x[1]);
      cluster_store(place + 6, uint32_t(i / kUnits), high.x[2], high.x[3]);
    }
    cluster_arrive();
    if (pair && q.exists) q.write_gates(dgates, t, j, g);
    cluster_wait();
    if (pair)
      for (int block = 0; block < kCtas; ++block) d_hidden += there[(block * kUnits + unit) * kRows + column];
  }
  if (!pair || !q.exists) return;
  dh[state] = d_hidden;
  dc[state] = d_cell;
  q.clear_rest(j, dgates);
}
