// A CUDA device on one CPU thread: what the kernels of cpp/*.cu stand on when their text is compiled as C++.
//
// Every thread of the blocks that run together is a fiber with a stack of its own. They take turns; a fiber gives way where it
// waits: at __syncthreads, in a warp's exchange, at a cluster's barrier, at a look at a flag. The order of the turns is a
// parameter, so that a result that depends on it shows: a block goes as far as it can before the next one, first or last one
// first; or all threads take turns as if at random. One cluster of blocks (or one block) runs at a time; of a cooperative
// launch all blocks do, or as many as the device is said to hold.
#pragma once

#define RHEME_EMULATED

#include <math.h>
#include <setjmp.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#define RHEME_FN static inline
#define RHEME_SYNC_WARP() emulated::sync_warp()
#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...) __attribute__((rheme_bounds(__VA_ARGS__)))
#define RHEME_CLUSTER(n) __attribute__((rheme_cluster((n))))
#define __shared__ static  // of blocks that run alone; others use RHEME_SHARED or dynamic_shared
#define RHEME_SHARED(type, name, count)                       \
  static type name##_of_blocks[emulated::kMostBlocks][count]; \
  type(&name)[count] = name##_of_blocks[emulated::current->block - emulated::blocks]
#define __restrict__

namespace emulated {

struct Dim {
  unsigned x = 1, y = 1, z = 1;
};

struct Barrier {
  unsigned expected = 0, arrived = 0, generation = 0;
};

struct Warp {
  Barrier barrier;
  alignas(16) unsigned char slots[2][32][16];
};

struct Block {
  Dim index;
  unsigned rank = 0;  // in its cluster
  Barrier barrier;
  Warp warps[32];
  unsigned char* shared = nullptr;  // the launch's dynamic shared memory
};

struct Fiber {
  jmp_buf context;
  unsigned char* stack = nullptr;
  bool started = false, done = true;
  Dim thread;
  Block* block = nullptr;
  unsigned exchanges = 0, arrived = 0;
};

constexpr size_t kStack = 64 << 10;
constexpr unsigned kMostBlocks = 136;  // that run together
constexpr unsigned kMostFibers = kMostBlocks * 256;

// One of each to a compiled module.
static Fiber* current;
static jmp_buf scheduler;
static Dim grid_size, block_size;
static Block blocks[kMostBlocks];
static Barrier cluster_barrier;
static unsigned cluster_size;
static size_t shared_size;
static Fiber* fibers[kMostFibers];
static void (*body)(void*);
static void* body_data;
static bool progress;

static void give_way() {
  if (!_setjmp(current->context)) _longjmp(scheduler, 1);
}

static void wait_at(Barrier& barrier) {
  const unsigned generation = barrier.generation;
  if (++barrier.arrived == barrier.expected) {
    barrier.arrived = 0;
    ++barrier.generation;
    progress = true;
    return;
  }
  while (barrier.generation == generation) give_way();
}

// Arriving and waiting apart, as a cluster's barrier can.
static unsigned arrive_at(Barrier& barrier) {
  const unsigned generation = barrier.generation;
  if (++barrier.arrived == barrier.expected) {
    barrier.arrived = 0;
    ++barrier.generation;
    progress = true;
  }
  return generation;
}

static Warp& own_warp() { return current->block->warps[current->thread.x / 32]; }
static void sync_warp() { wait_at(own_warp().barrier); }

// Every lane leaves a value; afterwards slot(j) is what lane j left. Two sets of slots take turns, so one wait is enough.
template <class U>
static U* exchange(U value) {
  static_assert(sizeof(U) <= 16, "a value of at most 16 bytes");
  Warp& warp = own_warp();
  unsigned char (*slots)[16] = warp.slots[current->exchanges++ % 2];
  memcpy(slots[current->thread.x % 32], &value, sizeof value);
  wait_at(warp.barrier);
  return reinterpret_cast<U*>(slots);
}
template <class U>
static U slot(const U* slots, unsigned lane) {
  U value;
  memcpy(&value, reinterpret_cast<const unsigned char*>(slots) + 16 * lane, sizeof value);
  return value;
}

static void fiber_main() {
  for (;;) {
    body(body_data);
    current->done = true;
    progress = true;
    give_way();
  }
}

static void resume(Fiber* fiber) {
  current = fiber;
  if (_setjmp(scheduler)) return;
  if (fiber->started) _longjmp(fiber->context, 1);
  fiber->started = true;
  fiber->stack = static_cast<unsigned char*>(malloc(kStack));
  static ucontext_t start;
  getcontext(&start);
  start.uc_stack.ss_sp = fiber->stack;
  start.uc_stack.ss_size = kStack;
  start.uc_link = nullptr;
  makecontext(&start, fiber_main, 0);
  setcontext(&start);
}

// 0, or 1 where all that still run wait for something that does not come.
static int run_together(unsigned block_count, unsigned threads, int order) {
  const unsigned count = block_count * threads;
  cluster_barrier = Barrier();
  cluster_barrier.expected = count;
  for (unsigned i = 0; i < count; ++i) {
    if (!fibers[i] || !fibers[i]->done) fibers[i] = new Fiber;  // or left behind by a deadlock
    fibers[i]->done = false;
    fibers[i]->block = &blocks[i / threads];
    fibers[i]->thread = Dim{i % threads, 0, 0};
    fibers[i]->exchanges = 0;
  }
  const auto run = [](unsigned i) {
    if (!fibers[i]->done) resume(fibers[i]);
  };
  for (unsigned idle = 0, round = 0;; ++round) {
    bool any = false;
    if (order == 2) {
      progress = false;
      for (unsigned turn = 0; turn < count; ++turn) run(unsigned((uint64_t(turn) * 48271u + 7 * round) % count));
      any = progress;
    } else {  // a block goes on for as long as it gets anywhere: far ahead of the others, where it does not wait for them
      for (unsigned b = 0; b < block_count; ++b) {
        const unsigned first = (order == 1 ? block_count - 1 - b : b) * threads;
        do {
          progress = false;
          for (unsigned turn = 0; turn < threads; ++turn) run(first + (order == 1 ? threads - 1 - turn : turn));
          any |= progress;
        } while (progress);
      }
    }
    unsigned left = 0;
    for (unsigned i = 0; i < count; ++i) left += !fibers[i]->done;
    if (!left) return 0;
    idle = any ? 0 : idle + 1;
    if (idle > 2000) return 1;
  }
}

struct Launch {
  unsigned grid[3], threads, shared, cluster, together;  // together: blocks that run at once, whole clusters
  int order;
};

template <class F>
static int run(const Launch& launch, F thread_body) {
  grid_size = Dim{launch.grid[0], launch.grid[1], launch.grid[2]};
  block_size = Dim{launch.threads, 1, 1};
  body = [](void* data) { (*static_cast<F*>(data))(); };
  body_data = &thread_body;
  const unsigned long total = (unsigned long)(grid_size.x) * grid_size.y * grid_size.z;
  const size_t room = (launch.shared + 15) / 16 * 16;
  const unsigned most = launch.together;
  if (most > kMostBlocks || most * launch.threads > kMostFibers || (most > launch.cluster && launch.cluster > 1)) abort();
  unsigned char* shared = static_cast<unsigned char*>(aligned_alloc(16, room * most + 16));
  int failed = 0;
  cluster_size = launch.cluster;
  shared_size = launch.shared;
  for (unsigned long first = 0; first < total && !failed; first += most) {
    const unsigned count = total - first < most ? unsigned(total - first) : most;
    memset(shared, 0xff, room * most);
    for (unsigned b = 0; b < count; ++b) {
      const unsigned long at = launch.order == 1 ? total - count - first + b : first + b;
      Block& block = blocks[b];
      block = Block();
      block.index =
          Dim{unsigned(at % grid_size.x), unsigned(at / grid_size.x % grid_size.y), unsigned(at / grid_size.x / grid_size.y)};
      block.rank = b;
      block.barrier.expected = launch.threads;
      for (unsigned w = 0; 32 * w < launch.threads; ++w)
        block.warps[w].barrier.expected = launch.threads - 32 * w < 32 ? launch.threads - 32 * w : 32;
      block.shared = shared + b * room;
    }
    failed = run_together(count, launch.threads, launch.order);
  }
  free(shared);
  return failed;
}

}  // namespace emulated

#define threadIdx (emulated::current->thread)
#define blockIdx (emulated::current->block->index)
#define blockDim (emulated::block_size)
#define gridDim (emulated::grid_size)

static inline void __syncthreads() { emulated::wait_at(emulated::current->block->barrier); }
template <class U>
static inline U __shfl_xor_sync(unsigned, U value, int mask) {
  const U* slots = emulated::exchange(value);
  return emulated::slot(slots, (threadIdx.x % 32) ^ unsigned(mask));
}
template <class U>
static inline U __shfl_up_sync(unsigned, U value, unsigned delta) {
  const U* slots = emulated::exchange(value);
  const unsigned lane = threadIdx.x % 32;
  return lane >= delta ? emulated::slot(slots, lane - delta) : value;
}
template <class U>
static inline U __shfl_sync(unsigned, U value, int lane) {
  const U* slots = emulated::exchange(value);
  return emulated::slot(slots, unsigned(lane) % 32);
}
static inline unsigned __ballot_sync(unsigned, bool value) {
  const int* slots = emulated::exchange(int(value));
  unsigned ballot = 0;
  for (unsigned lane = 0; lane < emulated::own_warp().barrier.expected; ++lane)
    ballot |= unsigned(emulated::slot(slots, lane) != 0) << lane;
  return ballot;
}
template <class U>
static inline U atomicAdd(U* at, U value) {
  const U before = *at;
  *at = before + value;
  return before;
}
template <class U>
static inline U atomicCAS(U* at, U expected, U value) {
  const U before = *at;
  if (before == expected) *at = value;
  return before;
}
static inline uint64_t __umul64hi(uint64_t a, uint64_t b) { return uint64_t((unsigned __int128)(a)*b >> 64); }
static inline uint32_t cluster_rank() { return emulated::current->block->rank; }
static inline void cluster_arrive() { emulated::current->arrived = emulated::arrive_at(emulated::cluster_barrier); }
static inline void cluster_wait() {
  while (emulated::cluster_barrier.generation == emulated::current->arrived) emulated::give_way();
}
static inline unsigned char* emulated_place(void* here, uint32_t rank, size_t size) {
  const ptrdiff_t offset = static_cast<unsigned char*>(here) - emulated::current->block->shared;
  if (rank >= emulated::cluster_size || offset < 0 || size_t(offset) + size > emulated::shared_size) abort();
  return emulated::blocks[rank].shared + offset;
}
template <class W>
static inline void cluster_store(void* here, uint32_t rank, W w) {
  memcpy(emulated_place(here, rank, sizeof w), &w, sizeof w);
}
static inline void cluster_store(float* here, uint32_t rank, float a, float b) {
  const float both[2] = {a, b};
  memcpy(emulated_place(here, rank, sizeof both), both, sizeof both);
}
static inline uint32_t bf16_pair(float low, float high) {
  uint32_t bits[2];
  memcpy(bits, &low, 4);
  memcpy(bits + 1, &high, 4);
  for (uint32_t& x : bits)
    x = (x & 0x7fffffffu) > 0x7f800000u ? 0x7fffu : (x + 0x7fffu + (x >> 16 & 1)) >> 16;  // to nearest, even among equals
  return bits[0] | bits[1] << 16;
}
static inline float emulated_bf16(uint32_t pair, int high) {
  const uint32_t bits = high ? pair & 0xffff0000u : pair << 16;
  float x;
  memcpy(&x, &bits, 4);
  return x;
}
template <class W>
static inline void mma_bf16(float* c, const W& a, uint32_t b0, uint32_t b1) {
  struct Pair {
    uint32_t x[2];
  };
  const W* as = emulated::exchange(a);
  float wide[2][16];  // the rows g and g + 8 of a
  const unsigned lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  for (unsigned l = 0; l < 4; ++l) {
    const W other = emulated::slot(as, 4 * g + l);
    for (int word = 0; word < 4; ++word)
      for (int high = 0; high < 2; ++high) wide[word % 2][word / 2 * 8 + 2 * l + high] = emulated_bf16(other.x[word], high);
  }
  const Pair* bs = emulated::exchange(Pair{{b0, b1}});
  for (unsigned column = 0; column < 2; ++column)
    for (unsigned l = 0; l < 4; ++l) {
      const Pair other = emulated::slot(bs, 4 * (2 * t + column) + l);
      for (int word = 0; word < 2; ++word)
        for (int high = 0; high < 2; ++high)
          for (int row = 0; row < 2; ++row)
            c[2 * row + column] += wide[row][8 * word + 2 * l + high] * emulated_bf16(other.x[word], high);
    }
}
static inline int __dp4a(int a, int b, int sum) {
  for (int i = 0; i < 32; i += 8) sum += int(int8_t(a >> i)) * int(int8_t(b >> i));
  return sum;
}
// A look at a flag of another block: whoever looks gives way.
static inline uint32_t load_acquire(const uint32_t* flag) {
  emulated::give_way();
  return *flag;
}
static inline void store_release(uint32_t* flag, uint32_t x) {
  *flag = x;
  emulated::progress = true;
}
template <class To, class From>
static inline To emulated_bits(From from) {
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}
static inline int __float_as_int(float x) { return emulated_bits<int>(x); }
static inline float __int_as_float(int x) { return emulated_bits<float>(x); }
static inline int64_t __double_as_longlong(double x) { return emulated_bits<int64_t>(x); }
static inline double __longlong_as_double(int64_t x) { return emulated_bits<double>(x); }

template <class U>
static inline U* dynamic_shared() {
  return reinterpret_cast<U*>(emulated::current->block->shared);
}
