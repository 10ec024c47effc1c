// Philox words by the array. Included by kernel files only; internal linkage throughout.
#pragma once

#include "rows.h"

namespace rheme {
namespace RHEME_NS {
namespace {

constexpr long kWords = 256;  // made at a time

// out[4 i + j] = word j of the counter (position + i, stream), for 64 counters.
static void philox_words(uint64_t seed, uint64_t stream, uint64_t position, uint32_t* out) {
  constexpr long N = kWords / 4;
  uint32_t c[4][N];
  const uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  const uint32_t s0 = static_cast<uint32_t>(stream), s1 = static_cast<uint32_t>(stream >> 32);
  for (long i = 0; i < N; ++i) {
    const uint64_t at = position + static_cast<uint64_t>(i);
    uint32_t c0 = static_cast<uint32_t>(at), c1 = static_cast<uint32_t>(at >> 32), c2 = s0, c3 = s1;
    philox4x32_10(c0, c1, c2, c3, k0, k1);
    c[0][i] = c0;
    c[1][i] = c1;
    c[2][i] = c2;
    c[3][i] = c3;
  }
  for (long i = 0; i < N; ++i)
    for (long j = 0; j < 4; ++j) out[4 * i + j] = c[j][i];
}

}  // namespace
}  // namespace RHEME_NS
}  // namespace rheme
