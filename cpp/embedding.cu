// Rows of a table by id, and the sum of gradients into those rows.
#include "device.h"

// `fault` (2,): the first id that is out of its range is noted there, one above its position, and the id; its row is NaN. The
// host looks at it when it next waits for the device.
RHEME_FN bool in_range(int64_t id, int64_t size, int64_t position, int64_t* fault) {
  if (id >= 0 && id < size) return true;
  if (atomicCAS(reinterpret_cast<unsigned long long*>(fault), 0ull, static_cast<unsigned long long>(position + 1)) == 0)
    fault[1] = id;
  return false;
}

extern "C" __global__ void embedding(int64_t m, int64_t c, int64_t v, const int64_t* ids, const T* weight, int64_t* fault,
                                     T* y) {
  RHEME_EACH(i, m * c) {
    const int64_t row = i / c, column = i % c, id = ids[row];
    const bool valid = id >= 0 && id < v;
    if (!valid && column == 0) in_range(id, v, row, fault);
    y[i] = valid ? weight[id * c + column] : T(__builtin_nanf(""));
  }
}

RHEME_FN int64_t lower_bound(const int64_t* ids, const int64_t* order, int64_t m, int64_t id) {
  int64_t low = 0, high = m;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (ids[order[middle]] < id)
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

// order (M,): positions by ascending id, equal ones by ascending position. A block sums into a row of the result.
extern "C" __global__ void embedding_backward(int64_t m, int64_t c, const int64_t* ids, const int64_t* order, const T* dy,
                                              T* dweight) {
  const int64_t id = blockIdx.x;
  const int64_t first = lower_bound(ids, order, m, id), last = lower_bound(ids, order, m, id + 1);
  RHEME_SHARE(j, c) {
    T sum = T(0);
    for (int64_t i = first; i < last; ++i) {
      const T next = dy[order[i] * c + j];
      sum = i == first ? next : sum + next;
    }
    dweight[id * c + j] = sum;
  }
}
