// What blocks do together. Those of a thread-block cluster (compute capability 9.0 and newer): distributed shared memory and
// the cluster's barrier; all of a launch: flags in global memory. And the tensor cores' product of 16-bit floats. Inline PTX:
// no header is needed.
#pragma once

#include "device.h"

struct alignas(16) Words {
  uint32_t x[4];
};

#ifndef RHEME_EMULATED
#define RHEME_CLUSTER(n) __cluster_dims__(n, 1, 1)

RHEME_FN uint32_t cluster_rank() {
  uint32_t rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

// A step of the cluster: what was stored before arriving, anywhere in the cluster's shared memory, is there after the wait.
// Threads of a warp may come here apart: aligned barriers want them together.
RHEME_FN void cluster_arrive() {
  __syncwarp();
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}
RHEME_FN void cluster_wait() {
  __syncwarp();
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

RHEME_FN uint32_t in_cluster(const void* here, uint32_t rank) {
  uint32_t there;
  const uint32_t own = static_cast<uint32_t>(__cvta_generic_to_shared(here));
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(own), "r"(rank));
  return there;
}

// Store to the place in another block's shared memory that `here` is in this block's.
RHEME_FN void cluster_store(void* here, uint32_t rank, Words w) {
  asm volatile("st.shared::cluster.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(in_cluster(here, rank)), "r"(w.x[0]), "r"(w.x[1]),
               "r"(w.x[2]), "r"(w.x[3])
               : "memory");
}
RHEME_FN void cluster_store(float* here, uint32_t rank, float a, float b) {
  asm volatile("st.shared::cluster.v2.f32 [%0], {%1, %2};" ::"r"(in_cluster(here, rank)), "f"(a), "f"(b) : "memory");
}

RHEME_FN void cluster_store(uint64_t* here, uint32_t rank, uint64_t x) {
  asm volatile("st.shared::cluster.u64 [%0], %1;" ::"r"(in_cluster(here, rank)), "l"(x) : "memory");
}

// A flag between blocks anywhere: who reads what store_release wrote sees what was stored before it, by its block behind a
// barrier too.
RHEME_FN uint32_t load_acquire(const uint32_t* flag) {
  uint32_t x;
  asm volatile("ld.acquire.gpu.u32 %0, [%1];" : "=r"(x) : "l"(flag) : "memory");
  return x;
}
RHEME_FN void store_release(uint32_t* flag, uint32_t x) {
  asm volatile("st.release.gpu.u32 [%0], %1;" ::"l"(flag), "r"(x) : "memory");
}
// 16 bytes that another block may have written: not from this multiprocessor's own cache.
RHEME_FN Words load_exchanged(const void* from) {
  Words w;
  asm volatile("ld.relaxed.gpu.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(w.x[0]), "=r"(w.x[1]), "=r"(w.x[2]), "=r"(w.x[3])
               : "l"(from)
               : "memory");
  return w;
}

// Two floats rounded to bfloat16, the first in the low half.
RHEME_FN uint32_t bf16_pair(float low, float high) {
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}

// c (16, 8) += a (16, 16) b (16, 8), bfloat16 with sums in float, by a warp. Lane l holds, g = l / 4 and t = 2 (l % 4):
// a: row g, columns t and t + 1; row g + 8; row g, columns t + 8 and t + 9; row g + 8; b: column g, rows t, t + 1; t + 8, t +
// 9; c: row g, columns t, t + 1; row g + 8.
RHEME_FN void mma_bf16(float* c, const Words& a, uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a.x[0]), "r"(a.x[1]), "r"(a.x[2]), "r"(a.x[3]), "r"(b0), "r"(b1));
}
#else
RHEME_FN Words load_exchanged(const void* from) { return *static_cast<const Words*>(from); }
#endif
