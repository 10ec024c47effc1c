// Rows of a table by id, and the sum of gradients into those rows. Compiled once per ISA.
#include "rows.h"

namespace rheme {
namespace RHEME_NS {
namespace {

template <class T>
void embedding(const EmbeddingArgs<T>& a) {
  parallel_rows(a.m, a.c, [&a](long first, long last) {
    for (long i = first; i < last; ++i) {
      const T* row = a.weight + a.ids[i] * a.c;
      map_vectors<T>(0, a.c, a.y + i * a.c, [=](auto load) __attribute__((always_inline)) { return load(row); });
    }
  });
}

// A counting sort: positions by ascending id, equal ones by ascending position.
void stable_order(long m, long size, const int64_t* ids, int64_t* order) {
  Scratch<int64_t> end(size + 1);
  for (long v = 0; v <= size; ++v) end.data[v] = 0;
  for (long i = 0; i < m; ++i) ++end.data[ids[i] + 1];
  for (long v = 0; v < size; ++v) end.data[v + 1] += end.data[v];
  for (long i = 0; i < m; ++i) order[end.data[ids[i]]++] = i;
}

// Each row of the result has one owner, who finds its gradients side by side in `order`.
template <class T>
void embedding_backward(const EmbeddingBackwardArgs<T>& a) {
  typedef Simd<T> S;
  Scratch<int64_t> sorted(a.order ? 0 : a.m);
  if (!a.order) stable_order(a.m, a.num_embeddings, a.ids, sorted.data);
  const int64_t *ids = a.ids, *order = a.order ? a.order : sorted.data;
  parallel_rows(a.num_embeddings, a.c, [&a, ids, order](long first, long last) {
    const typename S::V zero = S::set(T(0));
    map_vectors<T>(first * a.c, last * a.c, a.dweight, [=](auto) __attribute__((always_inline)) { return zero; });
    long i = 0;
    for (long end = a.m; i < end;) {  // the first position of an id from `first` on
      const long middle = (i + end) / 2;
      if (ids[order[middle]] < first)
        i = middle + 1;
      else
        end = middle;
    }
    for (int64_t before = -1; i < a.m && ids[order[i]] < last; ++i) {
      const int64_t id = ids[order[i]];
      T* out = a.dweight + id * a.c;
      const T* row = a.dy + order[i] * a.c;
      if (id != before)
        map_vectors<T>(0, a.c, out, [=](auto load) __attribute__((always_inline)) { return load(row); });
      else
        map_vectors<T>(0, a.c, out, [=](auto load) __attribute__((always_inline)) { return load(out) + load(row); });
      before = id;
    }
  });
}

template <class T>
void fill(Table<T>& table) {
  table.embedding = embedding<T>;
  table.embedding_backward = embedding_backward<T>;
}

}  // namespace

void fill_embedding(Kernels& kernels) {
  fill(kernels.f32);
  fill(kernels.f64);
}

}  // namespace RHEME_NS
}  // namespace rheme
