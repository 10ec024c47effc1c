// The k largest of a row, in order. Included by kernel files only; internal linkage throughout.
//
// Order: larger first, equal ones by ascending id, not-a-numbers last. Comparisons alone decide, so the vectors' width may.
#pragma once

#include "rows.h"

namespace rheme {
namespace RHEME_NS {
namespace {

template <class T>
struct Entry {
  T x;
  int64_t id;
};

template <class T>
RHEME_FN bool before(const Entry<T>& a, const Entry<T>& b) {
  if (a.x > b.x) return true;
  if (a.x < b.x) return false;
  const bool a_is = a.x == a.x, b_is = b.x == b.x;
  return a_is == b_is ? a.id < b.id : a_is;
}

// Sorts few by counting for each how many stand before it, with no branch to mispredict: of 64, in a fifth of the time of
// merging. False, and nothing done, where there are many, or one is not a number.
template <class T>
static bool rank_entries(Entry<T>* entries, long n, Entry<T>* spare) {
  typedef Simd<T> S;
  typedef typename S::V V;
  typedef typename S::I I;
  constexpr long kMost = 256;
  if (n > kMost) return false;
  T x[kMost + S::W];
  alignas(64) decltype(+I{}[0]) id[kMost + S::W];
  I odd = {};
  for (long i = 0; i < n; ++i) {
    x[i] = entries[i].x;
    id[i] = static_cast<decltype(+I{}[0])>(entries[i].id);
    spare[i] = entries[i];
  }
  for (long i = n; i < n + S::W; ++i) x[i] = T(id[i] = 0);
  for (long i = 0; i < n; i += S::W) odd |= S::load(x + i) != S::load(x + i);
  for (long j = 0; j < S::W; ++j)
    if (odd[j]) return false;
  for (long first = 0; first < n; first += S::W) {
    const V mine = S::load(x + first);
    I own, rank = {};
    for (long j = 0; j < S::W; ++j) own[j] = id[first + j];
    for (long j = 0; j < n; ++j) {
      const V other = S::set(x[j]);
      rank -= (other > mine) | ((other == mine) & (I{} + id[j] < own));  // a comparison is -1 where it holds
    }
    for (long j = 0; j < min_long(S::W, n - first); ++j) entries[rank[j]] = spare[first + j];
  }
  return true;
}

// Sorts by merging runs; `spare` has room for n.
template <class T>
static void sort_entries(Entry<T>* entries, long n, Entry<T>* spare) {
  if (rank_entries(entries, n, spare)) return;
  constexpr long kRun = 16;
  for (long first = 0; first < n; first += kRun)
    for (long i = first + 1; i < min_long(n, first + kRun); ++i) {
      const Entry<T> entry = entries[i];
      long j = i;
      for (; j > first && before(entry, entries[j - 1]); --j) entries[j] = entries[j - 1];
      entries[j] = entry;
    }
  Entry<T>*from = entries, *to = spare;
  for (long width = kRun; width < n; width *= 2) {
    for (long first = 0; first < n; first += 2 * width) {
      const long middle = min_long(n, first + width), last = min_long(n, first + 2 * width);
      long i = first, j = middle;
      for (long out = first; out < last; ++out)
        to[out] = j >= last || (i < middle && before(from[i], from[j])) ? from[i++] : from[j++];
    }
    Entry<T>* t = from;
    from = to;
    to = t;
  }
  if (from != entries)
    for (long i = 0; i < n; ++i) entries[i] = from[i];
}

// The k-th largest of x, k >= 1; x is reordered. No not-a-numbers.
template <class T>
static T kth_largest(T* x, long n, long k) {
  long low = 0, high = n - 1;
  const long wanted = k - 1;
  while (low < high) {
    const T a = x[low], b = x[low + (high - low) / 2], c = x[high];
    const T pivot = a > b ? (b > c ? b : (a > c ? c : a)) : (a > c ? a : (b > c ? c : b));
    long i = low, j = high;
    while (i <= j) {
      while (x[i] > pivot) ++i;
      while (pivot > x[j]) --j;
      if (i <= j) {
        const T t = x[i];
        x[i++] = x[j];
        x[j--] = t;
      }
    }
    if (wanted <= j)
      high = j;
    else if (wanted >= i)
      low = i;
    else
      break;
  }
  return x[wanted];
}

// A floor of x that at least k of its n elements reach, and not many more: found by halving. n a multiple of a vector. False
// where x is not finite, or nearly constant.
template <class T>
static bool find_floor(const T* x, long n, long k, T& floor) {
  typedef Simd<T> S;
  typename S::V lowest = S::load(x), highest = lowest;
  for (long i = S::W; i < n; i += S::W) {
    lowest = S::min(lowest, S::load(x + i));
    highest = S::max(highest, S::load(x + i));
  }
  T low = lowest[0], high = highest[0];
  for (long j = 1; j < S::W; ++j) {
    low = lowest[j] < low ? lowest[j] : low;
    high = highest[j] > high ? highest[j] : high;
  }
  if (!(high - low > T(0)) || high - low == T(__builtin_inf())) return false;
  for (int turn = 0; turn < 24; ++turn) {
    const T middle = low + (high - low) * T(0.5);
    if (!(middle > low && middle < high)) break;
    typename S::I hits = {};
    const typename S::V least = S::set(middle);
    for (long i = 0; i < n; i += S::W) hits -= S::load(x + i) >= least;  // a comparison is -1 where it holds
    long reached = 0;
    for (long j = 0; j < S::W; ++j) reached += hits[j];
    if (reached < k) {
      high = middle;
      continue;
    }
    low = middle;
    if (reached <= k + k / 8) break;
  }
  floor = low;
  return true;
}

#if defined(__AVX512F__)
// Those that reach the floor, by ascending id; returns how many. `spare` has room for n.
static long keep_at_least(const float* x, long n, float floor, Entry<float>* entries, Entry<float>* spare) {
  typedef Simd<float> S;
  const __m512 least = _mm512_set1_ps(floor);
  int32_t* ids = reinterpret_cast<int32_t*>(spare);  // 4 of n * 16 bytes, whole vectors
  __m512i id = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  long count = 0;
  for (long i = 0; i < n; i += 16, id = _mm512_add_epi32(id, _mm512_set1_epi32(16))) {
    const S::V value = i + 16 <= n ? S::load(x + i) : S::load_part(x + i, n - i, __builtin_nanf(""));
    const __mmask16 reached = _mm512_cmp_ps_mask((__m512)value, least, _CMP_GE_OQ);
    _mm512_storeu_si512(ids + count, _mm512_maskz_compress_epi32(reached, id));
    count += __builtin_popcount(reached);
  }
  for (long i = 0; i < count; ++i) entries[i] = {x[ids[i]], ids[i]};
  return count;
}
#endif

// The k largest of x (n,) in order, 1 <= k <= n. `entries` and `spare` have room for n; returns entries.
//
// A floor that k of the maxima of disjoint groups reach is one for the k-th largest of all: whatever reaches it is sorted.
// Groups are of up to 8 parts of 8 elements, so that a group that reaches it is not searched whole.
template <class T>
static void largest(const T* x, long n, long k, Entry<T>* entries, Entry<T>* spare) {
  typedef Simd<T> S;
  const long room = min_long(64, n / (2 * k + S::W));
  const long size = min_long(8, room), parts = size ? room / size : 0, steps = parts * size;
  long found = 0;
  if (steps >= 4) {
    const long block = steps * S::W, blocks = n / block, groups = blocks * S::W;
    Scratch<T> maxima((parts + 2) * groups);
    T *tops = maxima.data, *reordered = tops + groups, *part_tops = reordered + groups;
    for (long b = 0; b < blocks; ++b) {
      typename S::V top = S::set(T(-__builtin_inf()));
      for (long q = 0; q < parts; ++q) {
        const T* from = x + b * block + q * size * S::W;
        typename S::V part = S::set(T(-__builtin_inf()));
        for (long s = 0; s < size; ++s) part = S::max(S::load(from + s * S::W), part);
        S::store(part_tops + (b * parts + q) * S::W, part);
        top = S::max(part, top);
      }
      S::store(tops + b * S::W, top);
    }
    if (groups >= k) {
      T floor;
      if (!find_floor(tops, groups, k, floor)) {
        for (long g = 0; g < groups; ++g) reordered[g] = tops[g];
        floor = kth_largest(reordered, groups, k);
      }
#if defined(__AVX512F__)
      if constexpr (sizeof(T) == 4) {
        found = keep_at_least(x, n, floor, entries, spare);
        if (found >= k) return sort_entries(entries, found, spare);
        found = 0;  // not-a-numbers are among the k largest
      }
#endif
      for (long g = 0; g < groups; ++g) {
        if (!(tops[g] >= floor)) continue;
        const long b = g / S::W, lane = g % S::W;
        for (long q = 0; q < parts; ++q) {
          if (!(part_tops[(b * parts + q) * S::W + lane] >= floor)) continue;
          const long first = b * block + q * size * S::W + lane;
          for (long id = first; id < first + size * S::W; id += S::W)
            if (x[id] >= floor) entries[found++] = {x[id], id};
        }
      }
      for (long id = blocks * block; id < n; ++id)
        if (x[id] >= floor) entries[found++] = {x[id], id};
    }
  }
  if (found < k) {
    for (long id = 0; id < n; ++id) entries[id] = {x[id], id};
    found = n;
  }
  sort_entries(entries, found, spare);
}

// The first of the largest, passing over not-a-numbers; 0 where there is nothing else. Each lane keeps its first largest and
// the turn that it came at.
template <class T>
static long first_largest(const T* x, long n) {
  typedef Simd<T> S;
  typedef typename S::V V;
  typedef typename S::I I;
  constexpr long N = 4, kStep = N * S::W;
  const T lowest = T(-__builtin_inf());
  V top[N];
  I turn[N], now = {};
#pragma GCC unroll 4
  for (long j = 0; j < N; ++j) {
    top[j] = S::set(lowest);
    turn[j] = now;
  }
  const auto look = [&](auto load) __attribute__((always_inline)) {
#pragma GCC unroll 4
    for (long j = 0; j < N; ++j) {
      const V value = load(j * S::W);
      const I better = value > top[j];
      top[j] = S::select(better, value, top[j]);
      turn[j] = better ? now : turn[j];
    }
    now += 1;
  };
  long i = 0;
  for (; i + kStep <= n; i += kStep) look([=](long j) __attribute__((always_inline)) { return S::load(x + i + j); });
  if (i < n)
    look([=](long j) __attribute__((always_inline)) { return S::load_part(x + (i + j < n ? i + j : 0), n - i - j, lowest); });
  T best = lowest;
  long at = 0;
  for (long j = 0; j < N; ++j)
    for (long lane = 0; lane < S::W; ++lane) {
      const long id = static_cast<long>(turn[j][lane]) * kStep + j * S::W + lane;
      if (top[j][lane] > best || (top[j][lane] == best && best > lowest && id < at)) {
        best = top[j][lane];
        at = id;
      }
    }
  return at;
}

}  // namespace
}  // namespace RHEME_NS
}  // namespace rheme
