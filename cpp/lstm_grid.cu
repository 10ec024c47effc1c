// LSTM over whole sequences with recurrent weights that stay in the chip, for hidden sizes whose weights no cluster of blocks
// holds: a set of kCtas blocks, spread over all multiprocessors, runs the rows of one direction. State and sums are in float;
// weights, and what the blocks exchange, in bfloat16 (RHEME_BF16) or in float.
//
// Each block owns kUnits hidden units and holds its slice of W_hh in registers: forward their 4 kUnits rows, backward their
// columns. After each step of a group of 8 rows it leaves the new h of its units (backward: their dgates) in `exchange`, in
// the L2 cache, and says so in its flag; before the next step it waits for the flags of the whole set and reads all of it.
// Groups take turns, so that one is computed while another's flags are on their way. Two slots of `exchange` alternate: who
// writes a slot has seen every block done with what stood there.
//
// All blocks of the launch must run at once: it is a cooperative one, and `_cuda` asks first how many the device can hold.
// Compiled for one hidden size: RHEME_HIDDEN, RHEME_CTAS. With RHEME_SPINS a wait gives up after so many looks, notes in
// `stuck` for whom and at which step, and the kernel ends. Gates, cells and everything else stand as in lstm.cu.
#include "persistent.h"

constexpr int kThreads = 256, kWarps = kThreads / 32;
static_assert(kUnits * kRows <= kThreads, "a thread to a unit of a row");

#ifdef RHEME_BF16
typedef uint16_t Item;
RHEME_FN Item item(float x) { return bf16(x); }
#else
typedef float Item;
RHEME_FN Item item(float x) { return x; }
#endif

// out (kParts, M, kRows): the parts of a (M, K) times x (K, kRows), a held by the block. x stands in shared memory with
// element (k, n) at own(there(k, n)), in `exchange` at there(k, n).
template <int M, int K>
struct Product {
#ifdef RHEME_BF16
  static constexpr int kParts = kWarps / (M / 16), kTiles = K / 16 / kParts, kPitch = K + 8;  // a word's bank: 4 n + lane % 4
  static constexpr int kRoom = kRows * kPitch;
  static constexpr int kMost = 28, kHeld = kTiles < kMost ? kTiles : kMost;  // 112 registers; the rest in shared memory
  static constexpr int kBytes = kRoom * sizeof(Item) + kParts * M * kRows * sizeof(float);
  static_assert(M % 16 == 0 && kTiles * kParts * 16 == K, "whole tiles");
  Words a[kHeld];

  RHEME_FN Words* rest() {
    return reinterpret_cast<Words*>(dynamic_shared<unsigned char>() + kBytes) + threadIdx.x / 32 * (kTiles - kHeld) * 32 +
           threadIdx.x % 32;
  }

  RHEME_FN int there(int k, int n) { return n * K + k; }
  RHEME_FN int own(int e) { return e / K * kPitch + e % K; }
  __device__ int row() const { return int(threadIdx.x) / 32 % (M / 16) * 16 + int(threadIdx.x) % 32 / 4; }
  __device__ int part() const { return int(threadIdx.x) / 32 / (M / 16); }
  template <class F>
  __device__ void load(F weight) {
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
      Words tile;
      for (int half = 0; half < 2; ++half)
        for (int high = 0; high < 2; ++high) {
          const int m = row() + 8 * high, k = 16 * (part() * kTiles + i) + 2 * int(threadIdx.x % 4) + 8 * half;
          tile.x[2 * half + high] = bf16_pair(weight(m, k), weight(m, k + 1));
        }
      if (i < kHeld)
        a[i < kHeld ? i : 0] = tile;
      else
        rest()[(i - kHeld) * 32] = tile;
    }
  }
  __device__ void multiply(const Item* x, float* out) const {
    const int g = threadIdx.x % 32 / 4, t4 = threadIdx.x % 4;
    const uint32_t* from = reinterpret_cast<const uint32_t*>(x) + (g * kPitch + part() * kTiles * 16) / 2 + t4;
    float sum[4] = {0, 0, 0, 0};
#pragma unroll
    for (int i = 0; i < kTiles; ++i)
      mma_bf16(sum, i < kHeld ? a[i < kHeld ? i : 0] : rest()[(i - kHeld) * 32], from[8 * i], from[8 * i + 4]);
    float* to = out + (part() * M + row()) * kRows + 2 * t4;
    to[0] = sum[0], to[1] = sum[1];
    to[8 * kRows] = sum[2], to[8 * kRows + 1] = sum[3];
  }
#else
  static constexpr int kParts = kThreads / M, kEach = K / kParts;  // weights of a thread
  static constexpr int kRoom = K * kRows + kParts * kRows;         // the parts are 8 words further apart: other banks
  static_assert(kEach * kParts == K, "whole parts");
  float a[kEach];

  RHEME_FN int there(int k, int n) { return k * kRows + n; }
  RHEME_FN int own(int e) { return e + e / (kEach * kRows) * kRows; }
  template <class F>
  __device__ void load(F weight) {
#pragma unroll
    for (int i = 0; i < kEach; ++i) a[i] = weight(int(threadIdx.x) % M, int(threadIdx.x) / M * kEach + i);
  }
  __device__ void multiply(const Item* x, float* out) const {
    const int m = threadIdx.x % M, part = threadIdx.x / M;
    float sum[kRows] = {0, 0, 0, 0, 0, 0, 0, 0};
#pragma unroll
    for (int i = 0; i < kEach; ++i) ::multiply(sum, a[i], x + (part * (kEach + 1) + i) * kRows);
    for (int n = 0; n < kRows; ++n) out[(part * M + m) * kRows + n] = sum[n];
  }
#endif
  RHEME_FN float total(const float* out, int m, int n) {
    float sum = 0.0f;
    for (int p = 0; p < kParts; ++p) sum += out[(p * M + m) * kRows + n];
    return sum;
  }
  // Everything from a slot of `exchange`.
  RHEME_FN void gather(const Item* slot, Item* x) {
    constexpr int kEach16 = 16 / sizeof(Item);
#pragma unroll 4  // in flight at once, beside the weights
    for (int i = threadIdx.x; i < K * kRows / kEach16; i += kThreads)
      *reinterpret_cast<Words*>(x + own(i * kEach16)) = load_exchanged(slot + i * kEach16);
  }
};

// This block among those of its set, and their flags: how many turns each has done.
struct Member {
  int rank, r, shard, shards, groups, turns;  // turns: groups of the shard, one after the other
  uint32_t* flags;
  int64_t* stuck;

  RHEME_FN Member of(int64_t batch, int64_t first, int64_t shards, uint32_t* flags, int64_t* stuck) {
    const int set = int(blockIdx.x) / kCtas, of_each = int(shards), shard = set % of_each;
    const int groups = int((batch + kRows - 1) / kRows);
    return {int(blockIdx.x) % kCtas,
            int(first) + set / of_each,
            shard,
            of_each,
            groups,
            groups > shard ? (groups - shard + of_each - 1) / of_each : 0,
            flags + set * kCtas,
            stuck};
  }
  // What the turn of a step left is there, from every block: after this, for all threads. False: it did not come.
  __device__ bool wait(int step, int turn) const {
    const uint32_t wanted = uint32_t(step * turns + turn + 1);
#ifdef RHEME_SPINS
    int came = 1;
    for (int i = threadIdx.x; i < kCtas; i += kThreads) {
      int64_t looks = 0;
      while (load_acquire(flags + i) < wanted && ++looks < RHEME_SPINS) {
      }
      if (looks < RHEME_SPINS) continue;
      came = 0;
      if (atomicCAS(reinterpret_cast<unsigned long long*>(stuck), 0ull, (unsigned long long)(i + 1)) == 0) stuck[1] = step;
    }
    return block_reduce<Min>(came, 1);
#else
    for (int i = threadIdx.x; i < kCtas; i += kThreads)
      while (load_acquire(flags + i) < wanted) {
      }
    __syncthreads();
    return true;
#endif
  }
  // What all threads of this block have stored is there for whoever sees the flag.
  __device__ void done(int step, int turn) const {
    __syncthreads();
    if (threadIdx.x == 0) store_release(flags + rank, uint32_t(step * turns + turn + 1));
  }
};

// first: the direction of the first sets; shards: sets to a direction. exchange: [directions][groups][2] slots.
extern "C" __global__ void __launch_bounds__(kThreads, 1)
    lstm_persistent(int64_t time, int64_t batch, int64_t directions, int64_t reverse, const int64_t* lengths,
                    const int64_t* order, const float* w_hh, const float* bias, const float* h0, const float* c0, float* gates,
                    float* cells, float* h_n, float* c_n, float* y, int64_t first, int64_t shards, uint32_t* exchange,
                    uint32_t* flags, int64_t* stuck) {
  typedef Product<kGates, kHidden> P;
  Item* hidden = dynamic_shared<Item>();                      // of a group, before its step
  float* sums = reinterpret_cast<float*>(hidden + P::kRoom);  // the parts of the pre-activations
  const Member me = Member::of(batch, first, shards, flags, stuck);
  const int unit = threadIdx.x % kUnits, column = threadIdx.x / kUnits % kRows, j = me.rank * kUnits + unit;
  const bool pair = threadIdx.x < kUnits * kRows;  // these threads have a unit of a row of the batch
  P product;
  product.load([=](int m, int k) {
    return w_hh[(int64_t(me.r * 4 + m / kUnits) * kHidden + me.rank * kUnits + m % kUnits) * kHidden + k];
  });
  float b[4];
  for (int i = 0; i < 4; ++i) b[i] = bias[(me.r * 4 + i) * kHidden + j];
  const auto row_of = [=](int turn, int n) {
    return Sequence::of(me.r, me.shard + turn * me.shards, n, int(time), int(batch), int(directions), reverse != 0, lengths,
                        order);
  };
  const int steps = me.turns ? row_of(me.turns - 1, 0).steps : 0;  // of the longest group
  for (int s = 0; s < steps; ++s)
    for (int turn = 0; turn < me.turns; ++turn) {
      const Sequence q = row_of(turn, column);
      if (s >= q.steps) continue;
      const int t = q.time_of(s);
      const int64_t state = q.state(j);
      Item* slots =
          reinterpret_cast<Item*>(exchange) + int64_t(me.r * me.groups + me.shard + turn * me.shards) * 2 * kRows * kHidden;
      float g[4] = {0, 0, 0, 0}, h = 0.0f, c = 0.0f;
      if (pair && q.exists) {
        q.read_gates(gates, t, j, g);
        h = s ? h_n[state] : h0 ? h0[state] : 0.0f;
        c = s ? c_n[state] : c0 ? c0[state] : 0.0f;
      }
      if (s == 0) {
        for (int i = threadIdx.x; i < kRows * kHidden; i += kThreads) {
          const Sequence other = row_of(turn, i % kRows);
          hidden[P::own(P::there(i / kRows, i % kRows))] = item(h0 && other.exists ? h0[other.state(i / kRows)] : 0.0f);
        }
      } else {
        if (!me.wait(s - 1, turn)) return;
        P::gather(slots + s % 2 * kRows * kHidden, hidden);
      }
      __syncthreads();
      product.multiply(hidden, sums);
      __syncthreads();
      if (pair) {
        for (int i = 0; i < 4; ++i) g[i] += b[i] + P::total(sums, i * kUnits + unit, column);
        if (t < q.length) lstm_cell<S>(g[0], g[1], g[2], g[3], c, h);
        slots[(s + 1) % 2 * kRows * kHidden + P::there(j, column)] = item(h);
      }
      me.done(s, turn);
      if (!pair || !q.exists) continue;
      q.write_step(t, j, g, c, h, gates, cells, y);
      h_n[state] = h;
      c_n[state] = c;
    }
  for (int turn = 0; turn < me.turns; ++turn) {
    const Sequence q = row_of(turn, column);
    if (!pair || !q.exists) continue;
    q.write_rest(j, y);
    if (q.steps) continue;
    h_n[q.state(j)] = h0 ? h0[q.state(j)] : 0.0f;
    c_n[q.state(j)] = c0 ? c0[q.state(j)] : 0.0f;
  }
}

extern "C" __global__ void __launch_bounds__(kThreads, 1)
    lstm_persistent_backward(int64_t time, int64_t batch, int64_t directions, int64_t reverse, const int64_t* lengths,
                             const int64_t* order, const float* w_hh, const float* dy, const float* gates, const float* cells,
                             const float* c0, float* dgates, float* dh, float* dc, int64_t first, int64_t shards,
                             uint32_t* exchange, uint32_t* flags, int64_t* stuck) {
  typedef Product<kUnits, 4 * kHidden> P;
  Item* gathered = dynamic_shared<Item>();                      // the dgates of a group's later step
  float* sums = reinterpret_cast<float*>(gathered + P::kRoom);  // the parts of W_hh^T dgates
  const Member me = Member::of(batch, first, shards, flags, stuck);
  const int unit = threadIdx.x % kUnits, column = threadIdx.x / kUnits % kRows, j = me.rank * kUnits + unit;
  const bool pair = threadIdx.x < kUnits * kRows;
  P product;
  product.load([=](int m, int k) { return w_hh[int64_t(me.r * 4 * kHidden + k) * kHidden + me.rank * kUnits + m]; });
  const auto row_of = [=](int turn) {
    return Sequence::of(me.r, me.shard + turn * me.shards, column, int(time), int(batch), int(directions), reverse != 0,
                        lengths, order);
  };
  const int steps = me.turns ? row_of(me.turns - 1).steps : 0;
  for (int i = 0; i <= steps; ++i)  // the last time only for dh
    for (int turn = 0; turn < me.turns; ++turn) {
      if (const int last = row_of(turn).steps; i > last || last == 0) continue;
      const auto slot_of = [&](int step) {
        const int64_t slots = int64_t(me.r * me.groups + me.shard + turn * me.shards) * 2 + step % 2;
        return reinterpret_cast<Item*>(exchange) + slots * kRows * 4 * kHidden;
      };
      float d_hidden = 0.0f;
      if (i > 0) {
        if (!me.wait(i - 1, turn)) return;
        P::gather(slot_of(i - 1), gathered);
        __syncthreads();
        product.multiply(gathered, sums);
        __syncthreads();
        if (pair) d_hidden = P::total(sums, unit, column);
      }
      const Sequence q = row_of(turn);  // here, not above: no register holds it beside the weights
      const int t = q.time_of(q.steps - 1 - i);
      const bool mine = pair && q.exists;
      float g[4] = {0, 0, 0, 0}, d_cell = mine ? dc[q.state(j)] : 0.0f;
      if (mine) d_hidden += dh[q.state(j)];
      if (i < q.steps) {
        if (pair) {
          q.gradients(t, j, dy, gates, cells, c0, g, d_hidden, d_cell);
          for (int k = 0; k < 4; ++k) slot_of(i)[P::there(k * kHidden + j, column)] = item(g[k]);
        }
        me.done(i, turn);
      }
      if (!mine) continue;
      if (i < q.steps) q.write_gates(dgates, t, j, g);
      dh[q.state(j)] = d_hidden;
      dc[q.state(j)] = d_cell;
    }
  for (int turn = 0; turn < me.turns; ++turn) {
    const Sequence q = row_of(turn);
    if (pair && q.exists) q.clear_rest(j, dgates);
  }
}
