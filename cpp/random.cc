// Random bits, uniforms and normals out of Philox4x32-10. Compiled once per ISA.
//
// Bits are made of two words each, low one first; doubles of 53 of those 64 bits, floats of the upper 24 bits of one word.
#include "philox.h"

namespace rheme {
namespace RHEME_NS {
namespace {

// Calls body(words, first, count) for all outputs, `per` of them to each run of 256 words.
template <class F>
static void parallel_words(uint64_t seed, uint64_t stream, uint64_t position, long n, long per, F body) {
  constexpr long kRuns = 32;
  const long runs = ceil_div(n, per);
  parallel(ceil_div(runs, kRuns), [=](long task) {
    uint32_t words[kWords];
    for (long run = task * kRuns; run < min_long(runs, (task + 1) * kRuns); ++run) {
      philox_words(seed, stream, position + static_cast<uint64_t>(run * (kWords / 4)), words);
      body(words, run * per, min_long(per, n - run * per));
    }
  });
}

RHEME_FN uint64_t join(const uint32_t* words, long i) {
  return static_cast<uint64_t>(words[2 * i]) | static_cast<uint64_t>(words[2 * i + 1]) << 32;
}

template <class T>
struct Draw;
template <>
struct Draw<float> {
  static constexpr long kPer = kWords;
  static constexpr double kUnit = 1.0 / 16777216.0;
  RHEME_FN float integer(const uint32_t* words, long i) { return static_cast<float>(static_cast<int32_t>(words[i] >> 8)); }
};
template <>
struct Draw<double> {
  static constexpr long kPer = kWords / 2;
  static constexpr double kUnit = 1.0 / 9007199254740992.0;
  RHEME_FN double integer(const uint32_t* words, long i) {
    return static_cast<double>(static_cast<int64_t>(join(words, i) >> 11));
  }
};

static void random_bits(const RandomArgs<uint64_t>& a) {
  uint64_t* y = a.y;
  parallel_words(a.seed, a.stream, a.position, a.n, kWords / 2, [=](const uint32_t* words, long first, long count) {
    for (long i = 0; i < count; ++i) y[first + i] = join(words, i);
  });
}

template <class T>
void random_uniform(const RandomArgs<T>& a) {
  typedef Draw<T> D;
  T* y = a.y;
  parallel_words(a.seed, a.stream, a.position, a.n, D::kPer, [=](const uint32_t* words, long first, long count) {
    for (long i = 0; i < count; ++i) y[first + i] = D::integer(words, i) * static_cast<T>(D::kUnit);
  });
}

template <class T>
void random_normal(const RandomArgs<T>& a) {
  typedef Draw<T> D;
  typedef Simd<T> S;
  T* y = a.y;
  parallel_words(a.seed, a.stream, a.position, a.n, D::kPer, [=](const uint32_t* words, long first, long count) {
    T u[2][D::kPer / 2];
    for (long i = 0; i < D::kPer / 2; ++i) {
      u[0][i] = D::integer(words, 2 * i);
      u[1][i] = D::integer(words, 2 * i + 1);
    }
    for (long i = 0; 2 * i < count; i += S::W) {
      typename S::V p = S::load(u[0] + i), q = S::load(u[1] + i);
      box_muller<S>(p, q, D::kUnit);
      S::store(u[0] + i, p);
      S::store(u[1] + i, q);
    }
    for (long i = 0; i < count; ++i) y[first + i] = u[i % 2][i / 2];
  });
}

template <class T>
void fill(Table<T>& table) {
  table.random_uniform = random_uniform<T>;
  table.random_normal = random_normal<T>;
}

}  // namespace

void fill_random(Kernels& kernels) {
  fill(kernels.f32);
  fill(kernels.f64);
  kernels.random_bits = random_bits;
}

}  // namespace RHEME_NS
}  // namespace rheme
