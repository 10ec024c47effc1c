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

// A counting sort brings the positions of each id together, in ascending order; each row of the result has one owner.
template <class T>
void embedding_backward(const EmbeddingBackwardArgs<T>& a) {
  typedef Simd<T> S;
  Scratch<int64_t> end(a.num_embeddings + 1), order(a.m);
  for (long v = 0; v <= a.num_embeddings; ++v) end.data[v] = 0;
  for (long i = 0; i < a.m; ++i) ++end.data[a.ids[i] + 1];
  for (long v = 0; v < a.num_embeddings; ++v) end.data[v + 1] += end.data[v];
  for (long i = 0; i < a.m; ++i) order.data[end.data[a.ids[i]]++] = i;  // end[v] now ends id v, and starts id v + 1
  parallel_rows(a.num_embeddings, a.c, [&](long first, long last) {
    for (long v = first; v < last; ++v) {
      const long from = v ? end.data[v - 1] : 0, to = end.data[v];
      T* out = a.dweight + v * a.c;
      if (from == to) {
        const typename S::V zero = S::set(T(0));
        map_vectors<T>(0, a.c, out, [=](auto) __attribute__((always_inline)) { return zero; });
        continue;
      }
      const T* row = a.dy + order.data[from] * a.c;
      map_vectors<T>(0, a.c, out, [=](auto load) __attribute__((always_inline)) { return load(row); });
      for (long i = from + 1; i < to; ++i) {
        const T* next = a.dy + order.data[i] * a.c;
        map_vectors<T>(0, a.c, out, [=](auto load) __attribute__((always_inline)) { return load(out) + load(next); });
      }
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
