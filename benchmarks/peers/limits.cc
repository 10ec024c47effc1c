// This machine's limits: multiply-adds, int8 dot products, and the bandwidth of each cache level. Compiled and run by limits.py
// with `c++ -O3 -march=native`; prints one "name value" a line, GFLOP/s or GB/s for all threads together: `limits THREADS
// [fma]`, with `fma` the multiply-adds alone, some 50 ms.
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace {

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// Keeps this thread on the t-th of the cores that the process may use: a kernel may start several threads on one core and part
// them only after milliseconds, as those of some virtual machines do.
void stay_on_core(int t) {
#if defined(__linux__)
  static const cpu_set_t allowed = [] {
    cpu_set_t set;
    CPU_ZERO(&set);
    sched_getaffinity(0, sizeof set, &set);
    return set;
  }();
  for (int cpu = 0, seen = 0; cpu < CPU_SETSIZE; ++cpu)
    if (CPU_ISSET(cpu, &allowed) && seen++ == t) {
      cpu_set_t one;
      CPU_ZERO(&one);
      CPU_SET(cpu, &one);
      sched_setaffinity(0, sizeof one, &one);
      return;
    }
#endif
}

// Runs body(thread) on all threads at once, several times; the median of the units done per second by all.
double rate(int threads, double units, const std::function<void(int)>& body) {
  stay_on_core(0);
  std::vector<double> seconds;
  for (int round = 0; round < 7; ++round) {
    std::atomic<int> ready{0};
    std::atomic<bool> go{false};
    std::vector<std::thread> pool;
    for (int t = 1; t < threads; ++t)
      pool.emplace_back([&, t] {
        stay_on_core(t);
        ++ready;
        while (!go) {
        }
        body(t);
      });
    while (ready < threads - 1) sched_yield();
    const double start = now();
    go = true;
    body(0);
    for (auto& thread : pool) thread.join();
    seconds.push_back(now() - start);
  }
  std::sort(seconds.begin(), seconds.end());
  return units * threads / seconds[seconds.size() / 2] * 1e-9;
}

typedef float V64 __attribute__((vector_size(64)));
typedef float V32 __attribute__((vector_size(32)));

// 12 independent chains hide the latency of the multiply-add on two ports.
template <class V>
void multiply_add(long iterations) {
  V acc[12], b = V{} + 0.999f, c = V{} + 0.001f;
#pragma GCC unroll 12
  for (int j = 0; j < 12; ++j) acc[j] = V{} + 0.1f * float(j);  // distinct, or they become one chain
  for (long i = 0; i < iterations; ++i) {
#pragma GCC unroll 12
    for (int j = 0; j < 12; ++j) acc[j] = acc[j] * b + c;
  }
#pragma GCC unroll 12
  for (int j = 0; j < 12; ++j) asm volatile("" ::"x"(acc[j]));
}

#if defined(__AVX512VNNI__)
void int8_dots(long iterations) {
  __m512i acc[12], a = _mm512_set1_epi8(3), b = _mm512_set1_epi8(5);
#pragma GCC unroll 12
  for (int j = 0; j < 12; ++j) acc[j] = _mm512_set1_epi32(j);
  for (long i = 0; i < iterations; ++i) {
#pragma GCC unroll 12
    for (int j = 0; j < 12; ++j) acc[j] = _mm512_dpbusd_epi32(acc[j], a, b);
    asm volatile("" : "+x"(a));
  }
#pragma GCC unroll 12
  for (int j = 0; j < 12; ++j) asm volatile("" ::"x"(acc[j]));
}
constexpr double kDots = 64;
#define INT8 int8_dots
#elif defined(__AVXVNNI__)
void int8_dots(long iterations) {
  __m256i acc[12], a = _mm256_set1_epi8(3), b = _mm256_set1_epi8(5);
#pragma GCC unroll 12
  for (int j = 0; j < 12; ++j) acc[j] = _mm256_set1_epi32(j);
  for (long i = 0; i < iterations; ++i) {
#pragma GCC unroll 12
    for (int j = 0; j < 12; ++j) acc[j] = _mm256_dpbusd_avx_epi32(acc[j], a, b);
    asm volatile("" : "+x"(a));
  }
#pragma GCC unroll 12
  for (int j = 0; j < 12; ++j) asm volatile("" ::"x"(acc[j]));
}
constexpr double kDots = 32;
#define INT8 int8_dots
#endif

// Reads `bytes` over and over, eight vectors at a time.
void read_all(const char* from, size_t bytes, long passes) {
  typedef float V __attribute__((vector_size(64), aligned(64), may_alias));
  for (long pass = 0; pass < passes; ++pass) {
    V acc[8];
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) acc[j] = V{};
    for (size_t i = 0; i < bytes; i += 512) {
#pragma GCC unroll 8
      for (int j = 0; j < 8; ++j) acc[j] += *reinterpret_cast<const V*>(from + i + 64 * j);
    }
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) asm volatile("" ::"x"(acc[j]));
  }
}

void copy_all(char* to, const char* from, size_t bytes, bool past_cache) {
#if defined(__AVX512F__)
  if (past_cache) {
    for (size_t i = 0; i < bytes; i += 64)
      _mm512_stream_ps(reinterpret_cast<float*>(to + i), _mm512_load_ps(reinterpret_cast<const float*>(from + i)));
    _mm_sfence();
    return;
  }
#endif
  typedef float V __attribute__((vector_size(64), aligned(64), may_alias));
  for (size_t i = 0; i < bytes; i += 64) *reinterpret_cast<V*>(to + i) = *reinterpret_cast<const V*>(from + i);
}

// Of one L3 domain; sysconf adds those of the whole processor up.
long shared_cache() {
  long kib = 0;
  if (FILE* file = std::fopen("/sys/devices/system/cpu/cpu0/cache/index3/size", "r")) {
    if (std::fscanf(file, "%ldK", &kib) != 1) kib = 0;
    std::fclose(file);
  }
  return kib > 0 ? kib * 1024 : std::max(16L << 20, sysconf(_SC_LEVEL3_CACHE_SIZE));
}

char* block(size_t bytes) {
  char* p = static_cast<char*>(std::aligned_alloc(1 << 21, (bytes + (1 << 21) - 1) >> 21 << 21));
  std::memset(p, 1, bytes);
  return p;
}

}  // namespace

int main(int argc, char** argv) {
  const int threads = argc > 1 ? std::atoi(argv[1]) : 1;
  const long n = 4000000;
  std::printf("fma %.4g\n", rate(threads, double(n) * 12 * 2 * 16, [&](int) { multiply_add<V64>(n); }));
  if (argc > 2 && !std::strcmp(argv[2], "fma")) return 0;
  std::printf("fma_avx2 %.4g\n", rate(threads, double(n) * 12 * 2 * 8, [&](int) { multiply_add<V32>(n); }));
#ifdef INT8
  std::printf("int8 %.4g\n", rate(threads, double(n) * 12 * 2 * kDots, [&](int) { INT8(n); }));
#endif
  const long l1 = sysconf(_SC_LEVEL1_DCACHE_SIZE), l2 = sysconf(_SC_LEVEL2_CACHE_SIZE), l3 = shared_cache();
  std::printf("L2_bytes %ld\nL3_bytes %ld\n", l2, l3);
  struct Level {
    const char* name;
    size_t bytes;  // per thread
  } levels[] = {{"L1", size_t(l1) / 2}, {"L2", size_t(l2) * 5 / 8}, {"L3", size_t(l3) / 8}, {"DRAM", size_t(256) << 20}};
  for (const Level& level : levels) {
    const size_t bytes = level.bytes / 512 * 512;
    std::vector<char*> blocks;
    for (int t = 0; t < threads; ++t) blocks.push_back(block(bytes));
    const long passes = std::max<long>(1, (long(1) << 30) / long(bytes));
    std::printf("%s %.4g\n", level.name,
                rate(threads, double(bytes) * passes, [&](int t) { read_all(blocks[t], bytes, passes); }));
    for (char* p : blocks) std::free(p);
  }
  const size_t bytes = size_t(128) << 20;
  std::vector<char*> from, to;
  for (int t = 0; t < threads; ++t) {
    from.push_back(block(bytes));
    to.push_back(block(bytes));
  }
  double best = 0;
  for (bool past_cache : {false, true})
    best = std::max(best, rate(threads, 2.0 * bytes, [&](int t) { copy_all(to[t], from[t], bytes, past_cache); }));
  std::printf("copy %.4g\n", best);
  return 0;
}
