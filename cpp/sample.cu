// Drawing ids from logits, and the k largest of a row: the ids that the CPU draws. A block takes a row; where RHEME_CTAS is
// more than 1 a cluster of so many blocks does, each with a stretch of it: then a large row too stays in their shared memory,
// and is read once.
//
// An id weighs floor(exp(z - max z) 2^44), z = logit / temperature: whole numbers, so that no sum depends on its order. Logits
// are ordered by keys, whole numbers in the same order (larger first, equal ones by ascending id, not-a-numbers last). Where
// top_k or top_p cut is found by radix: a histogram of the next 11 bits of the keys, with the number and the weight of each
// bin, from the top bits down. Equal keys have equal logits, and so equal weights: a cut among them is a division.
#ifndef RHEME_CTAS
#define RHEME_CTAS 1
#endif
#include "cluster.h"

constexpr int kCtas = RHEME_CTAS;
#if RHEME_CTAS > 1
#define RHEME_TEAM __launch_bounds__(512, 2) RHEME_CLUSTER(RHEME_CTAS)  // two on a multiprocessor
#else
#define RHEME_TEAM
#endif

constexpr int kBits = 11, kBins = 1 << kBits, kKeyBits = sizeof(T) * 8;

// -0 counts as 0, and not-a-numbers as less than all.
RHEME_FN Bits key_of(T x) {
  const Bits sign = Bits(1) << (kKeyBits - 1), infinity = S::bits(T(__builtin_inff()));
  const Bits b = S::bits(x);
  if ((b & ~sign) > infinity) return 0;
  if (b == sign) return sign;
  return b & sign ? ~b : b | sign;
}
RHEME_FN T of_key(Bits key) {
  const Bits sign = Bits(1) << (kKeyBits - 1);
  return S::of_bits(key & sign ? key & ~sign : ~key);
}

// The shared memory of a block beside its part of the row. The blocks of a cluster write into each other's.
struct Room {
  uint64_t weights[kBins];
  uint64_t inbox[kCtas > 1 ? kBins : 2];  // [kCtas][kBins / kCtas]: their parts of the bins that this block adds up
  uint64_t numbers[2][16];                // one of each block, the calls taking turns
  uint32_t counts[kBins];
};
static_assert(sizeof(Room) == 12 * kBins + (kCtas > 1 ? 8 * kBins : 16) + 256, "what `_cuda` reserves");

// What a row is drawn from: the v logits of it that this block has, and the id of the first.
struct Row {
  const T* logits;
  int64_t v, first, all;  // all: of the whole row
  T temperature, z_top, least;
  Room* room;
  int calls;

  RHEME_FN uint64_t whole(T e) { return uint64_t(int64_t(e * T(17592186044416.0))); }
  __device__ T exponential(T logit) const {
    const T e = S::exp(logit / temperature - z_top);
    return e == e ? e : T(0);
  }
  // A stretch: so many neighbouring ids that all of them are at most kBins. A block has whole stretches.
  __device__ int64_t stretch() const { return 32 * ((all + 32 * kBins - 1) / (32 * kBins)); }

  // The numbers of all blocks combined, given what all threads of this one have combined already.
  template <class F>
  __device__ uint64_t combined(uint64_t number) {
    if (kCtas == 1) return number;
    uint64_t* slots = room->numbers[calls++ % 2];
    if (threadIdx.x < kCtas) cluster_store(slots + cluster_rank(), threadIdx.x, number);
    cluster_arrive();
    cluster_wait();
    uint64_t result = slots[0];
    for (int i = 1; i < kCtas; ++i) result = F::of(result, slots[i]);
    return result;
  }
  // Bins, summed over all blocks, for every block. Each adds up a share of them and sends it round.
  template <class U>
  __device__ void merge(U* bins) {
    __syncthreads();
    if (kCtas == 1) return;
    constexpr int kShare = kBins / kCtas, kWord = 16 / sizeof(U);
    U* inbox = reinterpret_cast<U*>(room->inbox);
    const uint32_t rank = cluster_rank();
    for (int i = kWord * threadIdx.x; i < kBins; i += kWord * blockDim.x)
      cluster_store(inbox + rank * kShare + i % kShare, uint32_t(i / kShare), *reinterpret_cast<const Words*>(bins + i));
    cluster_arrive();
    cluster_wait();
    for (int i = threadIdx.x; i < kShare; i += blockDim.x) {
      U sum = 0;
      for (int j = 0; j < kCtas; ++j) sum += inbox[j * kShare + i];
      bins[rank * kShare + i] = sum;
    }
    __syncthreads();
    for (int i = kWord * threadIdx.x; i < kBins; i += kWord * blockDim.x) {
      U* share = bins + rank * kShare + i % kShare;
      if (uint32_t(i / kShare) != rank) cluster_store(share, uint32_t(i / kShare), *reinterpret_cast<const Words*>(share));
    }
    cluster_arrive();
    cluster_wait();
  }
};

// From which key on ids are kept: all above it, and of those with this very key the first `ties`, or all (last_tie).
struct Cut {
  Bits key;
  int64_t last_tie;  // the greatest id kept of those
};

// The bin, from the last one down, in which the running sum of `of` reaches `wanted`, 1 or more; what is left to reach in it.
template <class U>
RHEME_FN int find_bin(const U* of, uint64_t& wanted) {
  RHEME_SHARED(int, found, 1);
  RHEME_SHARED(uint64_t, rest, 1);
  constexpr int kMost = kBins / 32;
  uint64_t own = 0, total;
  const int each = kBins / blockDim.x;
  for (int j = 0; j < each && j < kMost; ++j) own += of[kBins - 1 - (threadIdx.x * each + j)];
  uint64_t before = block_sum_before(own, total);
  if (before < wanted && before + own >= wanted)
    for (int j = 0; j < each; ++j) {
      const int bin = kBins - 1 - (threadIdx.x * each + j);
      if (before + of[bin] >= wanted) {
        found[0] = bin;
        rest[0] = wanted - before;
        break;
      }
      before += of[bin];
    }
  __syncthreads();
  wanted = rest[0];
  const int bin = found[0];
  __syncthreads();
  return bin;
}

// The key at which the running number (by_weight: weight) of ids from `floor` up, largest first, reaches `wanted`, 1 or more,
// of at least as much; `wanted` becomes what is left to reach among the ids with that key, `of_each` what each of them counts.
RHEME_FN Bits find_key(Row& row, bool by_weight, Bits floor, uint64_t& wanted, uint64_t& of_each) {
  Bits prefix = 0;
  for (int shift = kKeyBits - kBits;;) {
    const int low = shift < 0 ? 0 : shift, bits = kBits + (shift < 0 ? shift : 0);
    const int high = low + bits;  // bits from here up are known
    for (int b = threadIdx.x; b < kBins; b += blockDim.x) {
      row.room->counts[b] = 0;
      row.room->weights[b] = 0;
    }
    __syncthreads();
    RHEME_SHARE(i, row.v) {
      const T logit = row.logits[i];
      const Bits key = key_of(logit);
      if (key < floor || (high < kKeyBits && (key >> high) != (prefix >> high))) continue;
      const int bin = int(key >> low) & ((1 << bits) - 1);
      if (by_weight)
        atomicAdd(reinterpret_cast<unsigned long long*>(row.room->weights + bin),
                  static_cast<unsigned long long>(Row::whole(row.exponential(logit))));
      else
        atomicAdd(row.room->counts + bin, 1u);
    }
    if (by_weight)
      row.merge(row.room->weights);
    else
      row.merge(row.room->counts);
    const int bin = by_weight ? find_bin(row.room->weights, wanted) : find_bin(row.room->counts, wanted);
    prefix |= Bits(bin) << low;
    if (low == 0) break;
    shift -= kBits;
  }
  of_each = by_weight ? Row::whole(row.exponential(of_key(prefix))) : 1;
  __syncthreads();
  return prefix;
}

// The first id at which the running sum of f(id) exceeds the point, which is asked of `point_of` given the sum of all; -1 where
// it never does. f takes a place of this block's part. Each warp sums stretches of ids of its own; one warp of the block that
// has it then walks the stretch that holds the point.
template <class F, class P>
RHEME_FN int64_t locate(Row& row, F f, P point_of) {
  RHEME_SHARED(int64_t, answer, 1);
  uint64_t* stretches = row.room->weights;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  const int64_t length = row.stretch(), count = (row.v + length - 1) / length, before_own = row.first / length;
  RHEME_SHARE(s, kBins) stretches[s] = 0;
  if (threadIdx.x == 0) answer[0] = -1;
  __syncthreads();
  for (int64_t s = warp; s < count; s += warps) {
    uint64_t sum = 0;
    for (int64_t i = s * length + lane; i < row.v && i < (s + 1) * length; i += 32) sum += f(i);
    sum = warp_running_sum(sum);
    if (lane == 31) stretches[kBins - 1 - before_own - s] = sum;  // as find_bin looks from the last one down
  }
  row.merge(stretches);
  uint64_t own = 0, total;
  RHEME_SHARE(s, kBins) own += stretches[s];
  block_sum_before(own, total);
  const uint64_t point = point_of(total);
  if (point >= total) return -1;  // alike for all threads
  uint64_t wanted = point + 1;
  const int64_t s = kBins - 1 - find_bin(stretches, wanted) - before_own;
  if (warp == 0 && s >= 0 && s < count) {
    uint64_t before = 0;
    for (int64_t first = s * length; first < (s + 1) * length; first += 32) {
      const int64_t i = first + lane;
      const uint64_t value = i < row.v && i < (s + 1) * length ? f(i) : 0;
      const uint64_t running = before + warp_running_sum(value);
      const bool reached = running >= wanted;
      const unsigned ballot = __ballot_sync(0xffffffffu, reached);
      if (ballot) {
        if (lane == 0) {
          int j = 0;
          while (!(ballot >> j & 1)) ++j;
          answer[0] = row.first + first + j;
        }
        break;
      }
      before = __shfl_sync(0xffffffffu, running, 31);
    }
  }
  __syncthreads();
  const int64_t id = int64_t(row.combined<Max>(uint64_t(answer[0] + 1))) - 1;
  __syncthreads();
  return id;
}

// The first `ties` of the ids with a key, by ascending id.
RHEME_FN int64_t last_of_ties(Row& row, Bits key, uint64_t ties) {
  return locate(
      row, [&row, key](int64_t i) -> uint64_t { return key_of(row.logits[i]) == key; }, [ties](uint64_t) { return ties - 1; });
}

RHEME_FN uint64_t whole_at_least(double x) {
  const uint64_t n = uint64_t(x);
  return double(n) < x ? n + 1 : n;
}

// This block's part of a row: in its own memory where it fits there (staged): then it is read once, however often it is gone
// through.
RHEME_FN Row row_of(const T* all_logits, int64_t n, int64_t all, int64_t staged) {
  Row row = {nullptr, 0, 0, all, T(1), T(0), T(0), dynamic_shared<Room>(), 0};
  const int64_t stretches = (all + row.stretch() - 1) / row.stretch(), each = (stretches + kCtas - 1) / kCtas * row.stretch();
  row.first = kCtas == 1 ? 0 : cluster_rank() * each;
  row.v = row.first >= all ? 0 : all - row.first < each ? all - row.first : each;
  const T* from = all_logits + n * all + row.first;
  row.logits = from;
  if (!staged) return row;
  constexpr int kWord = 16 / sizeof(T);
  T* own = reinterpret_cast<T*>(row.room + 1);
  row.logits = own;
  const int64_t in_words = reinterpret_cast<uint64_t>(from) % 16 ? 0 : row.v / kWord * kWord;
#pragma unroll 4
  for (int64_t i = kWord * threadIdx.x; i < in_words; i += kWord * blockDim.x)
    *reinterpret_cast<Words*>(own + i) = *reinterpret_cast<const Words*>(from + i);
  for (int64_t i = in_words + threadIdx.x; i < row.v; i += blockDim.x) own[i] = from[i];
  __syncthreads();
  return row;
}

// logits (N, V), bits (N,) -> ids (N,). least: min_p, rounded up to T.
extern "C" __global__ void RHEME_TEAM sample(int64_t all, const T* all_logits, const uint64_t* bits, double temperature,
                                             int64_t top_k, double top_p, double least, int64_t staged, int64_t* ids) {
  const int64_t n = blockIdx.x / kCtas;
  Row row = row_of(all_logits, n, all, staged);
  row.temperature = T(temperature);
  row.least = T(least);
  if (kCtas > 1) {  // every block runs, and its shared memory may be written
    cluster_arrive();
    cluster_wait();
  }
  Bits own = 0;
  RHEME_SHARE(i, row.v) own = Max::of(own, key_of(row.logits[i]));
  const Bits top = Bits(row.combined<Max>(uint64_t(block_reduce<Max>(own, Bits(0)))));
  row.z_top = top ? of_key(top) / row.temperature : T(0);
  int64_t first = all - 1;
  RHEME_SHARE(i, row.v) if (key_of(row.logits[i]) == top) first = Min::of(first, row.first + i);
  first = int64_t(row.combined<Min>(uint64_t(block_reduce<Min>(first, all - 1))));
  const int64_t first_largest = top ? first : 0;  // 0 where all are not-a-numbers
  const uint64_t random = bits[n];
  int64_t id = -1;
  // Not finite: every id hidden, or logits that overflow.
  if (temperature != 0 && top && row.z_top - row.z_top == T(0)) {
    Cut cut = {0, all};
    uint64_t each;
    if (top_k > 0 && top_k < all) {
      uint64_t wanted = uint64_t(top_k);
      cut.key = find_key(row, false, 0, wanted, each);
      cut.last_tie = last_of_ties(row, cut.key, wanted);
    }
    const auto weight = [&row, &cut](int64_t i) -> uint64_t {
      const T logit = row.logits[i];
      const Bits key = key_of(logit);
      if (key < cut.key || (key == cut.key && row.first + i > cut.last_tie)) return 0;
      const T e = row.exponential(logit);
      return e < row.least ? 0 : Row::whole(e);
    };
    if (top_p < 1) {
      uint64_t sum = 0, total;
      const T kept = row.least;
      row.least = T(0);
      RHEME_SHARE(i, row.v) sum += weight(i);
      row.least = kept;
      block_sum_before(sum, total);
      total = row.combined<Add>(total);
      uint64_t wanted = whole_at_least(top_p * double(total));
      if (wanted == 0 || total == 0) {  // the likeliest alone
        cut = {top, first_largest};
      } else {
        const Bits key = find_key(row, true, cut.key, wanted, each);
        const uint64_t ties = (wanted + each - 1) / each;
        const int64_t last = last_of_ties(row, key, ties);
        if (key > cut.key || last < cut.last_tie) cut = {key, last};
      }
    }
    id = locate(row, weight, [random](uint64_t total) { return total ? __umul64hi(random, total) : 1; });
  }
  if (threadIdx.x == 0 && row.first == 0) ids[n] = id < 0 ? first_largest : id;
  if (kCtas > 1) {  // nobody goes while another may still write to it
    cluster_arrive();
    cluster_wait();
  }
}

#if RHEME_CTAS == 1
// The k largest in order. keys and positions: (N, P) of scratch, P the least power of two that is at least k.
extern "C" __global__ void top_k(int64_t v, int64_t k, int64_t p, int64_t staged, const T* x, uint64_t* keys,
                                 int64_t* positions, T* values, int64_t* ids) {
  __shared__ unsigned found;
  Row row = row_of(x, blockIdx.x, v, staged);
  keys += int64_t(blockIdx.x) * p;
  positions += int64_t(blockIdx.x) * p;
  Cut cut = {0, v};
  if (k < v) {
    uint64_t wanted = uint64_t(k), each;
    cut.key = find_key(row, false, 0, wanted, each);
    cut.last_tie = last_of_ties(row, cut.key, wanted);
  }
  if (threadIdx.x == 0) found = 0;
  __syncthreads();
  RHEME_SHARE(i, v) {
    const Bits key = key_of(row.logits[i]);
    if (key < cut.key || (key == cut.key && i > cut.last_tie)) continue;
    const unsigned at = atomicAdd(&found, 1u);  // in any order: they are sorted next, and no two are equal
    keys[at] = uint64_t(key);
    positions[at] = i;
  }
  for (int64_t i = k + threadIdx.x; i < p; i += blockDim.x) {
    keys[i] = 0;
    positions[i] = v + i;
  }
  __syncthreads();
  for (int64_t size = 2; size <= p; size *= 2)  // a bitonic network
    for (int64_t stride = size / 2; stride; stride /= 2) {
      RHEME_SHARE(pair, p / 2) {
        const int64_t a = pair / stride * 2 * stride + pair % stride, b = a + stride;
        const bool ascending = (a & size) != 0;
        const bool before = keys[a] > keys[b] || (keys[a] == keys[b] && positions[a] < positions[b]);
        if (before == ascending) {
          const uint64_t key = keys[a];
          const int64_t position = positions[a];
          keys[a] = keys[b];
          positions[a] = positions[b];
          keys[b] = key;
          positions[b] = position;
        }
      }
      __syncthreads();
    }
  RHEME_SHARE(i, k) {
    values[int64_t(blockIdx.x) * k + i] = row.logits[positions[i]];  // as it is: -0 and not-a-numbers too
    ids[int64_t(blockIdx.x) * k + i] = positions[i];
  }
}
#endif
