// Drawing ids from logits, and the k largest of a row. Compiled once per ISA.
//
// An id weighs floor(exp(z - max z) 2^44), z = logit / temperature: whole numbers, so that no sum depends on its order. A row
// is cut into segments whose weights are summed first; the draw then walks one segment only. top_k and top_p look for a cut in
// the order of the logits: each id falls into one of 2048 bins by max z - z, which keeps that order, and only the bin that the
// cut falls into is sorted.
#include "select.h"

namespace rheme {
namespace RHEME_NS {
namespace {

constexpr long kSegment = 512;
constexpr int32_t kBins = 2048;  // of width 1/64: weights end at max z - z = 44 ln 2 = 30.5
constexpr int32_t kDropped = kBins;

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

RHEME_FN float next_above(float x) { return __builtin_nextafterf(x, 2.0f); }
RHEME_FN double next_above(double x) { return __builtin_nextafter(x, 2.0); }

template <class T>
struct Sampler {
  const SampleArgs<T>& a;
  typedef Simd<T> S;
  typedef typename S::V V;
  typedef WeightSum<T> Sum;

  int64_t draw(long n) const {
    const T* logits = a.logits + n * a.v;
    const T top = row_max(logits, a.v);
    const T temperature = static_cast<T>(a.temperature), z_top = top / temperature;
    // Not finite: every id hidden, or logits that overflow.
    if (a.temperature == 0 || !(z_top - z_top == T(0))) return first_largest(logits, a.v);
    const long k = a.top_k > 0 && a.top_k < a.v ? a.top_k : a.v;
    int64_t id;
    if (k == a.v && a.top_p >= 1)
      id = draw_plain(logits, temperature, z_top, a.bits[n]);
    else if (k <= 1024 && 4 * k <= a.v)
      id = draw_few(logits, temperature, z_top, a.bits[n], k);
    else
      id = draw_filtered(logits, temperature, z_top, a.bits[n], k);
    return id < 0 ? first_largest(logits, a.v) : id;
  }

 private:
  // exp(z - max z), 0 where the logit is not a number.
  RHEME_FN V exponential(V logit, V temperature, V z_top) {
    const V e = S::exp(logit / temperature - z_top);
    return S::select(e == e, e, S::set(T(0)));
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

  int64_t draw_plain(const T* logits, T temperature, T z_top, uint64_t bits) const {
    const long segments = ceil_div(a.v, kSegment);
    const V t = S::set(temperature), zt = S::set(z_top), least = S::set(least_exponential()), none = S::set(T(0));
    const auto kept = [=](V logit) __attribute__((always_inline)) {
      const V e = exponential(logit, t, zt);
      return S::select(e < least, none, e);
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
  int64_t draw_few(const T* logits, T temperature, T z_top, uint64_t bits, long k) const {
    Scratch<Entry<T>> entries(a.v), spare(a.v);
    largest(logits, a.v, k, entries.data, spare.data);
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

  // The general case: bins of exponentials, with a cut in one bin for top_k and in one for top_p.
  int64_t draw_filtered(const T* logits, T temperature, T z_top, uint64_t bits, long k) const {
    const long padded = ceil_div(a.v, S::W) * S::W;
    Scratch<T> e(padded);
    Scratch<int32_t> bin(padded);
    Scratch<uint64_t> weights(kBins);
    Scratch<int32_t> counts(kBins);
    for (long b = 0; b < kBins; ++b) {
      weights.data[b] = 0;
      counts.data[b] = 0;
    }
    const V t = S::set(temperature), zt = S::set(z_top), last_bin = S::set(T(kBins - 1));
    for (long i = 0; i < a.v; i += S::W) {
      const V logit = i + S::W <= a.v ? S::load(logits + i) : S::load_part(logits + i, a.v - i, T(-__builtin_inf()));
      S::store(e.data + i, exponential(logit, t, zt));
      T place[S::W];
      S::store(place, S::min((zt - logit / t) * S::set(T(64)), last_bin));
      for (long j = 0; j < S::W; ++j) bin.data[i + j] = static_cast<int32_t>(place[j]);
    }
    for (long i = 0; i < a.v; ++i) weights.data[bin.data[i]] += Sum::weight(e.data[i]);
    int32_t cut = kBins - 1;  // bins past it are dropped
    if (k < a.v) {
      for (long i = 0; i < a.v; ++i) ++counts.data[bin.data[i]];
      long above = 0;
      for (cut = 0; cut < kBins - 1 && above + counts.data[cut] < k; ++cut) above += counts.data[cut];
      if (above + counts.data[cut] > k) weights.data[cut] = trim(logits, e.data, bin.data, cut, k - above, ~uint64_t(0));
    }
    if (a.top_p < 1) {
      uint64_t total = 0, above = 0;
      for (int32_t b = 0; b <= cut; ++b) total += weights.data[b];
      const uint64_t wanted = wanted_weight(total);
      int32_t b = 0;
      for (; b < cut && above + weights.data[b] < wanted; ++b) above += weights.data[b];
      cut = b;
      if (above + weights.data[cut] > wanted || wanted == 0)
        weights.data[cut] = trim(logits, e.data, bin.data, cut, a.v, wanted - above);
    }
    const T least = least_exponential();
    for (long i = 0; i < a.v; ++i) e.data[i] = bin.data[i] <= cut && e.data[i] >= least ? e.data[i] : T(0);
    for (long i = a.v; i < padded; ++i) e.data[i] = T(0);
    return draw_weighted(e.data, bits);
  }

  // Keeps, of a bin, the first in order: at most `most` of them, none once their weight reaches `wanted`, yet always one. The
  // others are marked as dropped. Returns the weight kept.
  uint64_t trim(const T* logits, const T* e, int32_t* bin, int32_t cut, long most, uint64_t wanted) const {
    long count = 0;
    for (long i = 0; i < a.v; ++i) count += bin[i] == cut;
    Scratch<Entry<T>> entries(2 * count);
    count = 0;
    for (long i = 0; i < a.v; ++i)
      if (bin[i] == cut) entries.data[count++] = {logits[i], i};
    sort_entries(entries.data, count, entries.data + count);
    uint64_t kept = 0;
    for (long i = 0; i < count; ++i) {
      const long id = entries.data[i].id;
      if (i < most && (i == 0 || kept < wanted))
        kept += Sum::weight(e[id]);
      else
        bin[id] = kDropped;
    }
    return kept;
  }

  // From exponentials padded with zeros to whole vectors.
  int64_t draw_weighted(const T* e, uint64_t bits) const {
    const long segments = ceil_div(a.v, kSegment);
    Scratch<uint64_t> weights(segments);
    for (long s = 0; s < segments; ++s) {
      Sum sum;
      for (long i = s * kSegment; i < min_long(a.v, (s + 1) * kSegment); i += S::W) Sum::add(sum, S::load(e + i));
      weights.data[s] = Sum::total(sum);
    }
    uint64_t point;
    const long s = find_segment(weights.data, segments, bits, point);
    if (s < 0) return -1;
    for (long i = s * kSegment; i < a.v; ++i) {
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
