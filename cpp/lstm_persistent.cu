// LSTM over whole sequences with recurrent weights that stay in the chip: bfloat16 weights and exchange, state and sums in
// float.
//
// A cluster of kCtas blocks runs 8 rows of one direction through all their steps. Each block owns kUnits hidden units: their
// 4 kUnits rows of W_hh are held as fragments of the tensor cores' product, in registers as far as they go, then in shared
// memory. Each step the new h is stored into every block of the cluster, and one barrier of the cluster ends the step.
// Backward, a block has the gradients of its own gates and sends every block its part of W_hh^T dgates; the parts are added in
// the order of the blocks. A cluster ends with the longest of its rows; `order` brings rows of like length together.
//
// Compiled for one hidden size: RHEME_HIDDEN, RHEME_CTAS. Gates, cells and everything else stand as in lstm.cu.
#include "persistent.h"

constexpr int kWarps = kUnits / 4, kThreads = 32 * kWarps;
constexpr int kTiles = kHidden / 16;              // fragments a warp has
constexpr int kMost = kThreads <= 256 ? 32 : 24;  // 128 of 255 registers, or 96 of 168
constexpr int kInRegisters = kTiles < kMost ? kTiles : kMost;
constexpr int kInShared = kTiles - kInRegisters;
constexpr int kPitch = kHidden + 8, kGatePitch = kGates + 8;  // of rows of bfloat16: a word's bank is 4 row + lane % 4
static_assert(kUnits % 8 == 0 && kHidden % (4 * kCtas) == 0 && kHidden % 16 == 0 && kCtas % 4 == 0, "sizes that fit the tiles");

// The fragments of a warp, those past kInRegisters in shared memory.
struct Fragments {
  Words own[kInRegisters];
  Words* rest;
  // f(i): fragment i of this warp.
  template <class F>
  __device__ void load(Words* shared, F f) {
    rest = shared + (threadIdx.x / 32) * kInShared * 32 + threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < kInRegisters; ++i) own[i] = f(i);
    for (int i = kInRegisters; i < kTiles; ++i) rest[(i - kInRegisters) * 32] = f(i);
  }
};

extern "C" __global__ void __launch_bounds__(kThreads, 1) RHEME_CLUSTER(kCtas)
    lstm_persistent(int64_t time, int64_t batch, int64_t directions, int64_t reverse, const int64_t* lengths,
                    const int64_t* order, const float* w_hh, const float* bias, const float* h0, const float* c0, float* gates,
                    float* cells, float* h_n, float* c_n, float* y) {
  uint16_t* hidden = dynamic_shared<uint16_t>();   // [2][kRows][kPitch]: h before the even steps, before the odd ones
  uint16_t* staged = hidden + 2 * kRows * kPitch;  // [kRows][kUnits]: the new h of this block
  Words* shared_weights = reinterpret_cast<Words*>(staged + kRows * kUnits);
  const uint32_t rank = cluster_rank();
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t4 = lane % 4;
  // Rows of a warp's tile: gate i of 4 units, then f, g and o. Afterwards a thread has one unit of one row of the batch.
  const int unit = warp * 4 + g % 4, column = 2 * t4 + (g >= 4), j = int(rank) * kUnits + unit;
  const auto row_of = [=](int n) { return Sequence::of_cluster(n, time, batch, directions, reverse, lengths, order); };
  const Sequence q = row_of(column);
  const float* w = w_hh + int64_t(q.r) * 4 * kHidden * kHidden;
  Fragments a;
  a.load(shared_weights, [=](int tile) {
    Words x;
    for (int half = 0; half < 2; ++half)
      for (int high = 0; high < 2; ++high) {
        const int row = g + 8 * high, k = 16 * tile + 2 * t4 + 8 * half;
        const float* from = w + int64_t(row / 4 * kHidden + int(rank) * kUnits + warp * 4 + row % 4) * kHidden + k;
        x.x[2 * half + high] = bf16_pair(from[0], from[1]);
      }
    return x;
  });
  for (int i = threadIdx.x; i < kRows * kHidden; i += kThreads) {
    const Sequence other = row_of(i / kHidden);
    const float h = h0 && other.exists ? h0[other.state(i % kHidden)] : 0.0f;
    hidden[i / kHidden * kPitch + i % kHidden] = bf16(h);
  }
  const int64_t state = q.state(j);
  float h = h0 && q.exists ? h0[state] : 0.0f, c = c0 && q.exists ? c0[state] : 0.0f, b[4], x[4] = {0, 0, 0, 0};
  for (int i = 0; i < 4; ++i) b[i] = bias[(q.r * 4 + i) * kHidden + j];
  if (q.steps) q.read_gates(gates, q.time_of(0), j, x);
  cluster_arrive();  // every block runs, and its shared memory may be written
  cluster_wait();
  for (int s = 0; s < q.steps; ++s) {
    const uint32_t* before = reinterpret_cast<const uint32_t*>(hidden + s % 2 * kRows * kPitch) + (g * kPitch) / 2 + t4;
    uint16_t* after = hidden + (s + 1) % 2 * kRows * kPitch;
    float sum[4] = {0, 0, 0, 0};
#pragma unroll
    for (int i = 0; i < kInRegisters; ++i) mma_bf16(sum, a.own[i], before[8 * i], before[8 * i + 4]);
    for (int i = kInRegisters; i < kTiles; ++i)
      mma_bf16(sum, a.rest[(i - kInRegisters) * 32], before[8 * i], before[8 * i + 4]);
    // The upper lanes have i and g of two columns, the lower ones f and o: each gives the other what it lacks of its column.
    const bool upper = g < 4;
    const float first = __shfl_xor_sync(0xffffffffu, upper ? sum[1] : sum[0], 16);
    const float second = __shfl_xor_sync(0xffffffffu, upper ? sum[3] : sum[2], 16);
    float gate[4] = {(upper ? sum[0] : first) + (x[0] + b[0]), (upper ? first : sum[1]) + (x[1] + b[1]),
                     (upper ? sum[2] : second) + (x[2] + b[2]), (upper ? second : sum[3]) + (x[3] + b[3])};
    const int t = q.time_of(s);
    if (t < q.length) lstm_cell<S>(gate[0], gate[1], gate[2], gate[3], c, h);
    staged[column * kUnits + unit] = bf16(h);
    __syncthreads();
    for (int i = threadIdx.x; i < kHidden; i += kThreads) {  // 16 bytes each, to every block
      const int chunk = i % kUnits, row = chunk / (kUnits / 8), part = chunk % (kUnits / 8) * 8;
      cluster_store(after + row * kPitch + int(rank) * kUnits + part, uint32_t(i / kUnits),
                    *reinterpret_cast<const Words*>(staged + row * kUnits + part));
    }
    cluster_arrive();
    q.write_step(t, j, gate, c, h, gates, cells, y);
    if (s + 1 < q.steps) q.read_gates(gates, q.time_of(s + 1), j, x);
    cluster_wait();
  }
  if (!q.exists) return;
  h_n[state] = h;
  c_n[state] = c;
  q.write_rest(j, y);
}

extern "C" __global__ void __launch_bounds__(kThreads, 1) RHEME_CLUSTER(kCtas)
    lstm_persistent_backward(int64_t time, int64_t batch, int64_t directions, int64_t reverse, const int64_t* lengths,
                             const int64_t* order, const float* w_hh, const float* dy, const float* gates, const float* cells,
                             const float* c0, float* dgates, float* dh, float* dc) {
  float* parts = dynamic_shared<float>();                                    // [2][kCtas][kUnits][kRows]
  uint16_t* own = reinterpret_cast<uint16_t*>(parts + 2 * kHidden * kRows);  // [kRows][kGatePitch]: this block's dgates
  Words* shared_weights = reinterpret_cast<Words*>(own + kRows * kGatePitch);
  const uint32_t rank = cluster_rank();
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t4 = lane % 4;
  const int unit = threadIdx.x / kRows, column = threadIdx.x % kRows, j = int(rank) * kUnits + unit;
  const auto row_of = [=](int n) { return Sequence::of_cluster(n, time, batch, directions, reverse, lengths, order); };
  const Sequence q = row_of(column);
  const float* w = w_hh + int64_t(q.r) * 4 * kHidden * kHidden;
  Fragments a;  // fragment m kWarps + k: rows 16 (warp + m kWarps) of W_hh^T, columns 16 k of this block's gates
  a.load(shared_weights, [=](int tile) {
    Words x;
    for (int half = 0; half < 2; ++half)
      for (int high = 0; high < 2; ++high) {
        const int row = 16 * (warp + tile / kWarps * kWarps) + g + 8 * high, k = 16 * (tile % kWarps) + 2 * t4 + 8 * half;
        const float* from = w + int64_t(k / kUnits * kHidden + int(rank) * kUnits + k % kUnits) * kHidden + row;
        x.x[2 * half + high] = bf16_pair(from[0], from[kHidden]);
      }
    return x;
  });
  const int64_t state = q.state(j);
  float d_hidden = q.exists ? dh[state] : 0.0f, d_cell = q.exists ? dc[state] : 0.0f;
  cluster_arrive();
  cluster_wait();
  for (int s = q.steps - 1; s >= 0; --s) {
    const int t = q.time_of(s);
    float gate[4];
    q.gradients(t, j, dy, gates, cells, c0, gate, d_hidden, d_cell);
    for (int i = 0; i < 4; ++i) own[column * kGatePitch + i * kUnits + unit] = bf16(gate[i]);
    __syncthreads();
    float* part = parts + s % 2 * kHidden * kRows;
    const uint32_t* from = reinterpret_cast<const uint32_t*>(own) + (g * kGatePitch) / 2 + t4;
#pragma unroll
    for (int m = 0; m < kTiles / kWarps; ++m) {
      float sum[4] = {0, 0, 0, 0};
#pragma unroll
      for (int k = 0; k < kWarps; ++k) {
        const int i = m * kWarps + k;
        mma_bf16(sum, i < kInRegisters ? a.own[i < kInRegisters ? i : 0] : a.rest[(i - kInRegisters) * 32], from[8 * k],
                 from[8 * k + 4]);
      }
      for (int high = 0; high < 2; ++high) {
        const int row = 16 * (warp + m * kWarps) + g + 8 * high;
        cluster_store(part + (int(rank) * kUnits + row % kUnits) * kRows + 2 * t4, uint32_t(row / kUnits), sum[2 * high],
                      sum[2 * high + 1]);
      }
    }
    cluster_arrive();
    if (q.exists) q.write_gates(dgates, t, j, gate);
    cluster_wait();
    for (int block = 0; block < kCtas; ++block) d_hidden += part[(block * kUnits + unit) * kRows + column];
  }
  if (!q.exists) return;
  dh[state] = d_hidden;
  dc[state] = d_cell;
  q.clear_rest(j, dgates);
}
