// What the persistent LSTMs share: how a hidden size is cut among the blocks of a cluster, and the rows of a cluster. Compiled
// for one hidden size: RHEME_HIDDEN, RHEME_CTAS.
#pragma once

#include "cluster.h"

constexpr int kHidden = RHEME_HIDDEN, kCtas = RHEME_CTAS, kRows = 8;
constexpr int kUnits = kHidden / kCtas;
static_assert(kUnits % 8 == 0 && kHidden % (4 * kCtas) == 0 && kHidden % 16 == 0 && kCtas % 4 == 0, "sizes that fit the tiles");

// A row of the batch, and which of its times are steps.
struct Sequence {
  int64_t r, n, length, steps;  // steps: of the longest row beside it
  bool exists, backwards;
  RHEME_FN Sequence of(int64_t column, int64_t time, int64_t batch, int64_t reverse, const int64_t* lengths,
                       const int64_t* order) {
    const int64_t groups = (batch + kRows - 1) / kRows, group = blockIdx.x / kCtas, r = group / groups;
    Sequence q = {r, 0, 0, 0, false, r == 1 || reverse};
    for (int64_t j = 0; j < kRows; ++j) {
      const int64_t place = group % groups * kRows + j;
      if (place >= batch) break;
      const int64_t n = order ? order[place] : place, given = lengths ? lengths[n] : time;
      const int64_t length = given < 0 ? 0 : given < time ? given : time;
      q.steps = length > q.steps ? length : q.steps;
      if (j != column) continue;
      q.exists = true;
      q.n = n;
      q.length = length;
    }
    return q;
  }
};
