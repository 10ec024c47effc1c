// Random bits, uniforms and normals out of Philox4x32-10, the same as the CPU's.
//
// Bits are made of two words each, low one first; doubles of 53 of those 64 bits, floats of the upper 24 bits of one word.
#include "device.h"

RHEME_FN uint64_t joined(const uint32_t* words, int half) {
  return uint64_t(words[2 * half]) | uint64_t(words[2 * half + 1]) << 32;
}

constexpr int kPerCounter = sizeof(T) == 4 ? 4 : 2;  // floats of a counter
constexpr double kUnit = sizeof(T) == 4 ? 1.0 / 16777216.0 : 1.0 / 9007199254740992.0;

RHEME_FN T integer(const uint32_t* words, int i) {
  return sizeof(T) == 4 ? T(int32_t(words[i] >> 8)) : T(int64_t(joined(words, i % 2) >> 11));
}

extern "C" __global__ void philox_words(uint64_t seed, uint64_t stream, uint64_t counter, uint32_t* y) {
  philox_at(seed, stream, counter, y);
}

extern "C" __global__ void random_bits(uint64_t seed, uint64_t stream, uint64_t position, int64_t n, uint64_t* y) {
  RHEME_EACH(c, (n + 1) / 2) {
    uint32_t words[4];
    philox_at(seed, stream, position + uint64_t(c), words);
    for (int half = 0; half < 2; ++half)
      if (2 * c + half < n) y[2 * c + half] = joined(words, half);
  }
}

extern "C" __global__ void random_uniform(uint64_t seed, uint64_t stream, uint64_t position, int64_t n, T* y) {
  RHEME_EACH(c, (n + kPerCounter - 1) / kPerCounter) {
    uint32_t words[4];
    philox_at(seed, stream, position + uint64_t(c), words);
    for (int i = 0; i < kPerCounter; ++i)
      if (kPerCounter * c + i < n) y[kPerCounter * c + i] = integer(words, i) * T(kUnit);
  }
}

extern "C" __global__ void random_normal(uint64_t seed, uint64_t stream, uint64_t position, int64_t n, T* y) {
  RHEME_EACH(c, (n + kPerCounter - 1) / kPerCounter) {
    uint32_t words[4];
    philox_at(seed, stream, position + uint64_t(c), words);
    for (int i = 0; i < kPerCounter; i += 2) {
      T a = integer(words, i), b = integer(words, i + 1);
      box_muller<S>(a, b, kUnit);
      const int64_t at = kPerCounter * c + i;
      if (at < n) y[at] = a;
      if (at + 1 < n) y[at + 1] = b;
    }
  }
}
