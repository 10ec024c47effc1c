// Drawing ids from logits, and the k largest of a row. Compiled once per ISA.
//
// An id weighs floor(exp(z - max z) 2^44), z = logit / temperature: whole numbers, so that no sum depends on its order. A row
// is cut into segments whose weights are summed first; the draw then walks one segment only. top_k and top_p look for a cut in
// the order of the logits by halving the range of those that may be kept; only the few around the cut are sorted.
#include "select.h"

namespace rheme {
namespace RHEME_NS {
namespace {

constexpr long kSegment = 512;

// The sum of the weights of up to 512 vectors. A float's weight is split into two whole numbers of 22 bits, upper and lower
// half, exactly, so that 32-bit lanes hold the sums.
template <class T>
struct WeightSum;
template <>
struct WeightSum<float> {
  typedef Simd<float> S;
  S::I upper = {}, lower = {};
  RHEME_FN uint64_t weight(float e) { return static_cast<uint64_t>(static_cast<int64_t>(e * 17592186044416.0f)); }
  RHEME_FN void add(WeightSum& sum, S::V e) {
    const S::V scaled = e * S::set(4194304.0f);
    const S::I high = S::to_int(scaled);
    sum.upper += high;
    sum.lower += S::to_int((scaled - S::to_float(high)) * S::set(4194304.0f));
  }
  RHEME_FN uint64_t total(const WeightSum& sum) {
    uint64_t upper = 0, lower = 0;
    for (long i = 0; i < S::W; ++i) {
      upper += static_cast<uint32_t>(sum.upper[i]);
      lower += static_cast<uint32_t>(sum.lower[i]);
    }
    return (upper << 22) + lower;
  }
};
template <>
struct WeightSum<double> {
  typedef Simd<double> S;
  uint64_t sum = 0;
  RHEME_FN uint64_t weight(double e) { return static_cast<uint64_t>(static_cast<int64_t>(e * 17592186044416.0)); }
  RHEME_FN void add(WeightSum& sum, S::V e) {
    for (long i = 0; i < S::W; ++i) sum.sum += weight(e[i]);
  }
  RHEME_FN uint64_t total(const WeightSum& sum) { return sum.sum; }
};

// The upper half of a 64 x 64 bit product.
RHEME_FN uint64_t high_product(uint64_t a, uint64_t b) {
  return static_cast<uint64_t>((static_cast<unsigned __int128>(a) * b) >> 64);
}

// The least whole number that is not below x, 0 <= x < 2^63.
RHEME_FN uint64_t whole_at_least(double x) {
  const uint64_t n = static_cast<uint64_t>(x);
  return static_cast<double>(n) < x ? n + 1 : n;
}

// Those of x and e (n,) with e above `limit`, in order, and their places; returns how many. The results have room for n and two
// vectors more; x is padded with -inf, e with 0, to whole vectors.
template <class T>
static long keep_above(const T* x, const T* e, long n, T limit, T* kept_x, T* kept_e, int32_t* ids) {
  typedef Simd<T> S;
  long count = 0, i = 0;
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) {
    const __m512 least = _mm512_set1_ps(limit);
    const __m512i sixteen = _mm512_set1_epi32(16);
    __m512i id = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    for (; i + 16 <= n; i += 16, id = _mm512_add_epi32(id, sixteen)) {
      const __m512 value = _mm512_loadu_ps(e + i);
      const __mmask16 mask = _mm512_cmp_ps_mask(value, least, _CMP_GT_OQ);
      if (!mask) continue;
      _mm512_storeu_ps(kept_e + count, _mm512_maskz_compress_ps(mask, value));
      _mm512_storeu_ps(kept_x + count, _mm512_maskz_compress_ps(mask, _mm512_loadu_ps(x + i)));
      _mm512_storeu_si512(ids + count, _mm512_maskz_compress_epi32(mask, id));
      count += __builtin_popcount(mask);
    }
  }
#endif
  for (; i < n; ++i) {
    kept_x[count] = x[i];
    kept_e[count] = e[i];
    ids[count] = static_cast<int32_t>(i);
    count += e[i] > limit;
  }
  for (long j = 0; j < S::W; ++j) {
    kept_x[count + j] = T(-__builtin_inf());
    kept_e[count + j] = T(0);
  }
  return count;
}

RHEME_FN float next_above(float x) { return __builtin_nextafterf(x, 2.0f); }
RHEME_FN double next_above(double x) { return __builtin_nextafter(x, 2.0); }

// Whether a comparison holds for any lane.
template <class I>
RHEME_FN bool any(I lanes) {
#if defined(__AVX512F__)
  return _mm512_test_epi32_mask((__m512i)lanes, (__m512i)lanes) != 0;
#elif defined(__AVX2__)
  return !_mm256_testz_si256((__m256i)lanes, (__m256i)lanes);
#else
  bool found = false;
  for (long j = 0; j < static_cast<long>(sizeof lanes / sizeof lanes[0]); ++j) found |= lanes[j] != 0;
  return found;
#endif
}

template <class T>
struct Sampler {
  const SampleArgs<T>& a;
  typedef Simd<T> S;
  typedef typename S::V V;
  typedef WeightSum<T> Sum;

  int64_t draw(long n) const {
    const T* logits = a.logits + n * a.v;
    if (a.temperature == 0) return first_largest(logits, a.v);
    const T temperature = static_cast<T>(a.temperature);
    const long k = a.top_k > 0 && a.top_k < a.v ? a.top_k : a.v;
    int64_t id = -1;
    if (k <= 1024 && 4 * k <= a.v) {
      id = draw_few(logits, temperature, a.bits[n], k);
    } else {
      const T z_top = row_max(logits, a.v) / temperature;
      if (!finite(z_top))
        id = -1;
      else if (k == a.v && a.top_p >= 1)
        id = a.min_p > 0 ? draw_plain<true>(logits, temperature, z_top, a.bits[n])
                         : draw_plain<false>(logits, temperature, z_top, a.bits[n]);
      else
        id = draw_filtered(logits, temperature, z_top, a.bits[n], k);
    }
    return id < 0 ? first_largest(logits, a.v) : id;  // every id hidden, or logits that overflow
  }

 private:
  RHEME_FN bool finite(T x) { return x - x == T(0); }

  // exp(z - max z), 0 where the logit is not a number.
  RHEME_FN V exponential(V logit, V temperature, V z_top) {
    return S::max(S::exp(logit / temperature - z_top), S::set(T(0)));  // the second where the first is not a number
  }

  // Where the running weight of the segments exceeds the point drawn; what is left of the point. -1 where all weigh nothing.
  static long find_segment(const uint64_t* segments, long count, uint64_t bits, uint64_t& point) {
    uint64_t total = 0;
    for (long s = 0; s < count; ++s) total += segments[s];
    if (total == 0) return -1;
    point = high_product(bits, total);
    for (long s = 0; s < count; ++s) {
      if (segments[s] > point) return s;
      point -= segments[s];
    }
    return -1;
  }

  // The least T that is not below min_p.
  T least_exponential() const {
    const T least = static_cast<T>(a.min_p);
    return static_cast<double>(least) < a.min_p ? next_above(least) : least;
  }

  template <bool MIN_P>
  int64_t draw_plain(const T* logits, T temperature, T z_top, uint64_t bits) const {
    const long segments = ceil_div(a.v, kSegment);
    const V t = S::set(temperature), zt = S::set(z_top), least = S::set(least_exponential()), none = S::set(T(0));
    const auto kept = [=](V logit) __attribute__((always_inline)) {
      const V e = exponential(logit, t, zt);
      return MIN_P ? S::select(e < least, none, e) : e;
    };
    Scratch<uint64_t> weights(segments);
    for (long s = 0; s < segments; ++s) {
      const long last = min_long(a.v, (s + 1) * kSegment);
      Sum sum;
      long i = s * kSegment;
      for (; i + S::W <= last; i += S::W) Sum::add(sum, kept(S::load(logits + i)));
      if (i < last) Sum::add(sum, kept(S::load_part(logits + i, last - i, T(-__builtin_inf()))));
      weights.data[s] = Sum::total(sum);
    }
    uint64_t point;
    const long s = find_segment(weights.data, segments, bits, point);
    if (s < 0) return -1;
    const long last = min_long(a.v, (s + 1) * kSegment);
    for (long i = s * kSegment; i < last; i += S::W) {
      T e[S::W];
      S::store(e, kept(S::load_part(logits + i, last - i, T(-__builtin_inf()))));
      for (long j = 0; j < min_long(S::W, last - i); ++j) {
        const uint64_t w = Sum::weight(e[j]);
        if (w > point) return i + j;
        point -= w;
      }
    }
    return -1;
  }

  // The weight that the ids kept by top_p must reach together, out of `total`.
  uint64_t wanted_weight(uint64_t total) const {
    return a.top_p >= 1 ? total : whole_at_least(a.top_p * static_cast<double>(total));
  }

  // top_k leaves few ids: they are found first, and all else happens among them.
  int64_t draw_few(const T* logits, T temperature, uint64_t bits, long k) const {
    Scratch<Entry<T>> entries(a.v), spare(a.v);
    largest(logits, a.v, k, entries.data, spare.data);
    const T z_top = entries.data[0].x / temperature;
    if (!finite(z_top)) return -1;
    Scratch<T> e(k + S::W);
    for (long i = 0; i < k; ++i) e.data[i] = entries.data[i].x;
    for (long i = 0; i < k; i += S::W)
      S::store(e.data + i, exponential(S::load_part(e.data + i, k - i), S::set(temperature), S::set(z_top)));
    uint64_t total = 0, running = 0, kept_total = 0;
    for (long i = 0; i < k; ++i) total += Sum::weight(e.data[i]);
    const uint64_t wanted = wanted_weight(total);
    const T least = least_exponential();
    Scratch<Entry<double>> kept(2 * k);  // x is minus the id, so that they sort by ascending id, and `id` the weight
    long count = 0;
    for (long i = 0; i < k && (i == 0 || running < wanted); ++i) {
      const uint64_t w = Sum::weight(e.data[i]);
      running += w;
      if (w == 0 || !(e.data[i] >= least)) continue;
      kept_total += w;
      kept.data[count++] = {-static_cast<double>(entries.data[i].id), static_cast<int64_t>(w)};
    }
    if (count == 0) return -1;
    sort_entries(kept.data, count, kept.data + k);
    uint64_t point = high_product(bits, kept_total);
    for (long i = 0; i < count; ++i) {
      const uint64_t w = static_cast<uint64_t>(kept.data[i].id);
      if (w > point) return static_cast<int64_t>(-kept.data[i].x);
      point -= w;
    }
    return -1;
  }

  // The general case: the ids that may be kept, cut for top_k by their number, then for top_p by their weight.
  int64_t draw_filtered(const T* logits, T temperature, T z_top, uint64_t bits, long k) const {
    const long room = a.v + 2 * S::W;
    Scratch<T> all(room), x(room), e(room);
    Scratch<int32_t> ids(room);
    const V t = S::set(temperature), zt = S::set(z_top);
    map_vectors<T>(0, a.v, all.data,
                   [=](auto load) __attribute__((always_inline)) { return exponential(load(logits), t, zt); });
    T limit = T(0);
    if (k == a.v) {
      // Ids of weight at most (total - wanted) / V together weigh no more than what top_p leaves out, so none of them is kept;
      // half of that leaves room for exponentials that round against the order of their logits.
      const uint64_t total = weigh(all.data, a.v);
      limit = static_cast<T>(static_cast<double>(total - wanted_weight(total)) / (2.0 * static_cast<double>(a.v)) * 0x1p-44);
    }
    const long count = keep_above(logits, all.data, a.v, limit, x.data, e.data, ids.data);
    if (k < count) cut(x.data, e.data, count, k, ~uint64_t(0));
    if (a.top_p < 1) {
      const uint64_t total = k == a.v ? weigh(all.data, a.v) : weigh(e.data, count), wanted = wanted_weight(total);
      cut(x.data, e.data, count, count, wanted > 0 ? wanted : 1);
    }
    if (a.min_p > 0) {
      const T least = least_exponential();
      for (long i = 0; i < count; ++i) e.data[i] = e.data[i] >= least ? e.data[i] : T(0);
    }
    const int64_t at = draw_weighted(e.data, count, bits);
    return at < 0 ? at : ids.data[at];
  }

  // The weight of e (n,), and of those of them whose x is at least `least`, with their number.
  static uint64_t weigh(const T* e, long n) {
    uint64_t total = 0;
    for (long first = 0; first < n; first += kSegment)
      total += Sum::total(sum_segment(e, first, min_long(n, first + kSegment)));
    return total;
  }
  static uint64_t weigh_above(const T* x, const T* e, long n, T least, long& number) {
    const V floor = S::set(least), none = S::set(T(0));
    uint64_t total = 0;
    number = 0;
    for (long first = 0; first < n; first += 256 * S::W) {
      Sum sum;
      typename S::I hits = {};
      for (long i = first; i < min_long(n, first + 256 * S::W); i += S::W) {
        const typename S::I kept = S::load(x + i) >= floor;
        hits -= kept;
        Sum::add(sum, S::select(kept, S::load(e + i), none));
      }
      total += Sum::total(sum);
      for (long j = 0; j < S::W; ++j) number += hits[j];
    }
    return total;
  }
  static Sum sum_segment(const T* e, long first, long last) {
    Sum sum;
    long i = first;
    for (; i + S::W <= last; i += S::W) Sum::add(sum, S::load(e + i));
    if (i < last) Sum::add(sum, S::load_part(e + i, last - i));
    return sum;
  }

  // Keeps the first in order: at most `most` of them, none once their weight reaches `wanted`. The others' e becomes 0. x and e
  // are padded as keep_above does.
  static void cut(T* x, T* e, long n, long most, uint64_t wanted) {
    const T infinity = T(__builtin_inf());
    V lowest = S::set(infinity);
    for (long i = 0; i < n; i += S::W) {
      const V value = S::load(x + i);
      lowest =
          S::min(S::select(value > S::set(-infinity), value, S::set(infinity)), lowest);  // -inf: an earlier cut dropped it
    }
    T low = infinity, high = -infinity;
    for (long j = 0; j < S::W; ++j) low = lowest[j] < low ? lowest[j] : low;
    const T top = row_max(x, n);
    high = top + (top - low) + T(1);  // above all; those that reach it are kept, those below `low` are not
    if (!(high > top)) high = infinity;
    uint64_t above = 0;
    long over = 0, within = n;
    while (within > 64) {
      const T middle = low + (high - low) * T(0.5);
      if (!(middle > low && middle < high)) break;
      long number;
      const uint64_t weight = weigh_above(x, e, n, middle, number);
      if (number >= most || weight >= wanted) {
        low = middle;
        within = number - over;
      } else {
        within -= number - over;
        high = middle;
        above = weight;
        over = number;
      }
    }
    Scratch<Entry<T>> entries(2 * within);
    long count = 0;
    const V floor = S::set(low), ceiling = S::set(high);
    for (long i = 0; i < n; i += S::W) {
      const V value = S::load(x + i);
      const typename S::I kept = value >= floor, open = kept & (value < ceiling);
      S::store(x + i, S::select(kept, value, S::set(-infinity)));
      S::store(e + i, S::select(kept, S::load(e + i), S::set(T(0))));
      if (!any(open)) continue;
      for (long j = 0; j < min_long(S::W, n - i); ++j)
        if (open[j]) entries.data[count++] = {value[j], i + j};
    }
    sort_entries(entries.data, count, entries.data + count);
    for (long i = 0; i < count; ++i) {
      const long at = entries.data[i].id;
      if (over + i < most && above < wanted)
        above += Sum::weight(e[at]);
      else
        drop(x, e, at);
    }
  }
  RHEME_FN void drop(T* x, T* e, long i) {
    x[i] = T(-__builtin_inf());
    e[i] = T(0);
  }

  static int64_t draw_weighted(const T* e, long n, uint64_t bits) {
    const long segments = ceil_div(n, kSegment);
    Scratch<uint64_t> weights(segments);
    for (long s = 0; s < segments; ++s)
      weights.data[s] = Sum::total(sum_segment(e, s * kSegment, min_long(n, (s + 1) * kSegment)));
    uint64_t point;
    const long s = find_segment(weights.data, segments, bits, point);
    if (s < 0) return -1;
    for (long i = s * kSegment; i < n; ++i) {
      const uint64_t w = Sum::weight(e[i]);
      if (w > point) return i;
      point -= w;
    }
    return -1;
  }
};

template <class T>
void sample(const SampleArgs<T>& a) {
  const Sampler<T> sampler = {a};
  parallel_rows(a.n, 8 * a.v, [&](long first, long last) {
    for (long n = first; n < last; ++n) a.ids[n] = sampler.draw(n);
  });
}

template <class T>
void top_k(const TopKArgs<T>& a) {
  if (a.k == 0) return;
  parallel_rows(a.n, 4 * a.v, [&a](long first, long last) {
    Scratch<Entry<T>> entries(a.v), spare(a.v);
    for (long n = first; n < last; ++n) {
      largest(a.x + n * a.v, a.v, a.k, entries.data, spare.data);
      for (long i = 0; i < a.k; ++i) {
        a.values[n * a.k + i] = entries.data[i].x;
        a.ids[n * a.k + i] = entries.data[i].id;
      }
    }
  });
}

template <class T>
void fill(Table<T>& table) {
  table.sample = sample<T>;
  table.top_k = top_k<T>;
}

}  // namespace

void fill_sample(Kernels& kernels) {
  fill(kernels.f32);
  fill(kernels.f64);
}

}  // namespace RHEME_NS
}  // namespace rheme
