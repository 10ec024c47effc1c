// Drawing ids from logits, and the k largest of a row: the ids that the CPU draws. A block takes a row.
//
// An id weighs floor(exp(z - max z) 2^44), z = logit / temperature: whole numbers, so that no sum depends on its order. Logits
// are ordered by keys, whole numbers in the same order (larger first, equal ones by ascending id, not-a-numbers last). Where
// top_k or top_p cut is found by radix: a histogram of the next 11 bits of the keys, with the number and the weight of each
// bin, from the top bits down. Equal keys have equal logits, and so equal weights: a cut among them is a division.
#include "device.h"

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

// What a row is drawn from, and the shared memory to do it with.
struct Row {
  const T* logits;
  int64_t v;
  T temperature, z_top, least;
  uint32_t* counts;   // (kBins,)
  uint64_t* weights;  // (kBins,)

  RHEME_FN uint64_t whole(T e) { return uint64_t(int64_t(e * T(17592186044416.0))); }
  __device__ T exponential(T logit) const {
    const T e = S::exp(logit / temperature - z_top);
    return e == e ? e : T(0);
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
  __shared__ int found;
  __shared__ uint64_t rest;
  constexpr int kMost = kBins / 32;
  uint64_t own = 0, total;
  const int each = kBins / blockDim.x;
  for (int j = 0; j < each && j < kMost; ++j) own += of[kBins - 1 - (threadIdx.x * each + j)];
  uint64_t before = block_sum_before(own, total);
  if (before < wanted && before + own >= wanted)
    for (int j = 0; j < each; ++j) {
      const int bin = kBins - 1 - (threadIdx.x * each + j);
      if (before + of[bin] >= wanted) {
        found = bin;
        rest = wanted - before;
        break;
      }
      before += of[bin];
    }
  __syncthreads();
  wanted = rest;
  const int bin = found;
  __syncthreads();
  return bin;
}

// The key at which the running number (by_weight: weight) of ids from `floor` up, largest first, reaches `wanted`, 1 or more,
// of at least as much; `wanted` becomes what is left to reach among the ids with that key, `of_each` what each of them counts.
RHEME_FN Bits find_key(const Row& row, bool by_weight, Bits floor, uint64_t& wanted, uint64_t& of_each) {
  Bits prefix = 0;
  for (int shift = kKeyBits - kBits;;) {
    const int low = shift < 0 ? 0 : shift, bits = kBits + (shift < 0 ? shift : 0);
    const int high = low + bits;  // bits from here up are known
    for (int b = threadIdx.x; b < kBins; b += blockDim.x) {
      row.counts[b] = 0;
      row.weights[b] = 0;
    }
    __syncthreads();
    RHEME_SHARE(i, row.v) {
      const T logit = row.logits[i];
      const Bits key = key_of(logit);
      if (key < floor || (high < kKeyBits && (key >> high) != (prefix >> high))) continue;
      const int bin = int(key >> low) & ((1 << bits) - 1);
      if (by_weight)
        atomicAdd(reinterpret_cast<unsigned long long*>(row.weights + bin),
                  static_cast<unsigned long long>(Row::whole(row.exponential(logit))));
      else
        atomicAdd(row.counts + bin, 1u);
    }
    __syncthreads();
    const int bin = by_weight ? find_bin(row.weights, wanted) : find_bin(row.counts, wanted);
    prefix |= Bits(bin) << low;
    if (low == 0) break;
    shift -= kBits;
  }
  of_each = by_weight ? Row::whole(row.exponential(of_key(prefix))) : 1;
  __syncthreads();
  return prefix;
}

// The first id at which the running sum of f(id) exceeds the point, which is asked of `point_of` given the sum of all; -1 where
// it never does. Each warp sums stretches of ids of its own; one warp then walks the stretch that holds the point.
template <class F, class P>
RHEME_FN int64_t locate(const Row& row, F f, P point_of) {
  __shared__ int64_t answer;
  uint64_t* stretches = row.weights;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  const int64_t length = 32 * ((row.v + 32 * kBins - 1) / (32 * kBins)), count = (row.v + length - 1) / length;
  RHEME_SHARE(s, kBins - count) stretches[s] = 0;
  for (int64_t s = warp; s < count; s += warps) {
    uint64_t sum = 0;
    for (int64_t i = s * length + lane; i < row.v && i < (s + 1) * length; i += 32) sum += f(i);
    sum = warp_running_sum(sum);
    if (lane == 31) stretches[kBins - 1 - s] = sum;  // as find_bin looks from the last one down
  }
  if (threadIdx.x == 0) answer = -1;
  __syncthreads();
  uint64_t own = 0, total;
  RHEME_SHARE(s, kBins) own += stretches[s];
  block_sum_before(own, total);
  uint64_t point = point_of(total);
  if (point < total) {  // alike for all threads
    uint64_t wanted = point + 1;
    const int64_t s = kBins - 1 - find_bin(stretches, wanted);
    if (warp == 0) {
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
            answer = first + j;
          }
          break;
        }
        before = __shfl_sync(0xffffffffu, running, 31);
      }
    }
    __syncthreads();
  }
  const int64_t id = answer;
  __syncthreads();
  return id;
}

// The first `ties` of the ids with a key, by ascending id.
RHEME_FN int64_t last_of_ties(const Row& row, Bits key, uint64_t ties) {
  return locate(
      row, [&row, key](int64_t i) -> uint64_t { return key_of(row.logits[i]) == key; }, [ties](uint64_t) { return ties - 1; });
}

RHEME_FN uint64_t whole_at_least(double x) {
  const uint64_t n = uint64_t(x);
  return double(n) < x ? n + 1 : n;
}

// The row, in the block's own memory where it fits there (staged): then it is read once, however often it is gone through.
RHEME_FN const T* row_of(const T* all, int64_t v, int64_t staged) {
  const T* from = all + int64_t(blockIdx.x) * v;
  if (!staged) return from;
  T* own = dynamic_shared<T>();
  RHEME_SHARE(i, v) own[i] = from[i];
  __syncthreads();
  return own;
}

// logits (N, V), bits (N,) -> ids (N,). least: min_p, rounded up to T.
extern "C" __global__ void sample(int64_t v, const T* all_logits, const uint64_t* bits, double temperature, int64_t top_k,
                                  double top_p, double least, int64_t staged, int64_t* ids) {
  __shared__ uint32_t counts[kBins];
  __shared__ uint64_t weights[kBins];
  Row row = {row_of(all_logits, v, staged), v, T(temperature), T(0), T(least), counts, weights};
  Bits own = 0;
  RHEME_SHARE(i, v) own = Max::of(own, key_of(row.logits[i]));
  const Bits top = block_reduce<Max>(own, Bits(0));
  row.z_top = top ? of_key(top) / row.temperature : T(0);
  const int64_t first_largest = [&] {  // 0 where all are not-a-numbers
    int64_t first = v - 1;
    RHEME_SHARE(i, v) if (key_of(row.logits[i]) == top) first = Min::of(first, i);
    return top ? block_reduce<Min>(first, v - 1) : 0;
  }();
  const uint64_t random = bits[blockIdx.x];
  int64_t id = -1;
  // Not finite: every id hidden, or logits that overflow.
  if (temperature != 0 && top && row.z_top - row.z_top == T(0)) {
    Cut cut = {0, v};
    uint64_t each;
    if (top_k > 0 && top_k < v) {
      uint64_t wanted = uint64_t(top_k);
      cut.key = find_key(row, false, 0, wanted, each);
      cut.last_tie = last_of_ties(row, cut.key, wanted);
    }
    if (top_p < 1) {
      uint64_t total = 0;
      RHEME_SHARE(i, v) {
        const Bits key = key_of(row.logits[i]);
        if (key > cut.key || (key == cut.key && i <= cut.last_tie)) total += Row::whole(row.exponential(row.logits[i]));
      }
      block_sum_before(total, total);
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
    id = locate(
        row,
        [&row, cut](int64_t i) -> uint64_t {
          const T logit = row.logits[i];
          const Bits key = key_of(logit);
          if (key < cut.key || (key == cut.key && i > cut.last_tie)) return 0;
          const T e = row.exponential(logit);
          return e < row.least ? 0 : Row::whole(e);
        },
        [random](uint64_t total) { return total ? __umul64hi(random, total) : 1; });
  }
  if (threadIdx.x == 0) ids[blockIdx.x] = id < 0 ? first_largest : id;
}

// The k largest in order. keys and positions: (N, P) of scratch, P the least power of two that is at least k.
extern "C" __global__ void top_k(int64_t v, int64_t k, int64_t p, int64_t staged, const T* x, uint64_t* keys,
                                 int64_t* positions, T* values, int64_t* ids) {
  __shared__ uint32_t counts[kBins];
  __shared__ uint64_t weights[kBins];
  __shared__ unsigned found;
  Row row = {row_of(x, v, staged), v, T(1), T(0), T(0), counts, weights};
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
