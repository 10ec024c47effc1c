#include "threads.h"

#include <pthread.h>
#include <sched.h>
#include <unistd.h>

#if defined(__linux__)
#include <sys/syscall.h>
#endif

#include <atomic>
#include <charconv>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <exception>
#include <mutex>
#include <new>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <thread>
#include <utility>

namespace rheme {
namespace {

void pause_briefly() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

int this_core() {
#if defined(__linux__)
  return sched_getcpu();
#else
  return -1;
#endif
}

// Where a neighbour has a core or a part of it, the thread there is late by milliseconds, and whoever waits for it is too: then
// one thread is the quicker choice. So a worker that was kept off its core, or a thread that waited long for another, says so
// here, and for a while there is one thread: longer each time that it happens again soon after.
constexpr int64_t kMissed = 2'000'000, kAlone = 50'000'000, kMostAlone = 1'600'000'000, kSoon = 500'000'000;  // ns
std::atomic<int64_t> alone_until{0};                      // by the steady clock; 0: now is no such while
std::atomic<int64_t> alone_before{0}, alone_for{kAlone};  // when the last one ended, how long it was

int64_t nanoseconds(clockid_t clock) {
  timespec t;
  clock_gettime(clock, &t);
  return int64_t(t.tv_sec) * 1'000'000'000 + t.tv_nsec;
}

void stay_alone() {
  const int64_t now = nanoseconds(CLOCK_MONOTONIC), before = alone_before.load(), last = alone_for.load();
  if (now < before) return;
  const int64_t length = now - before > kSoon ? kAlone : last < kMostAlone ? 2 * last : last;
  alone_for.store(length);
  alone_before.store(now + length);
  alone_until.store(now + length);
}

bool alone() {
  const int64_t until = alone_until.load(std::memory_order_relaxed);
  if (until == 0) return false;
  if (nanoseconds(CLOCK_MONOTONIC) < until) return true;
  alone_until.store(0, std::memory_order_relaxed);
  return false;
}

// How long a thread that wants to run has not run.
struct Watch {
  int64_t wall, own;
  Watch() { start(); }
  void start() {
    wall = nanoseconds(CLOCK_MONOTONIC);
    own = nanoseconds(CLOCK_THREAD_CPUTIME_ID);
  }
  int64_t missed() const {
    const int64_t ran = nanoseconds(CLOCK_THREAD_CPUTIME_ID) - own;
    return nanoseconds(CLOCK_MONOTONIC) - wall - ran;
  }
};

// A worker joins a job by raising `joined` while the job is open; the caller closes the job when no index is left and waits for
// those who joined only, so a worker that the scheduler keeps off its core delays nobody.
struct Pool {
  static constexpr unsigned kOpen = 1u << 16;  // in `state`; the low bits count the workers that joined
  static constexpr int kMaxWorkers = 255;

  std::mutex owner;  // held by the caller whose job runs
  std::atomic<unsigned> state{0};
  std::atomic<long> next{0};
  std::atomic<int> limit{0};  // workers with an id below it may join
  TaskFunction fn = nullptr;
  void* context = nullptr;
  long tasks = 0;
  std::atomic<bool> failed{false};
  std::exception_ptr error;  // of the first task that failed, who set `failed`

  std::mutex sleep_mutex;
  std::condition_variable wake;
  std::atomic<int> sleepers{0};
  int workers = 0;
  std::atomic<int> started{0};
  struct alignas(64) Seat {
    std::atomic<int> core{-1};  // where the worker was last seen
    int thread = 0;             // its id for the kernel
  } seats[kMaxWorkers];
#if defined(__linux__)
  cpu_set_t allowed;
  Pool() { sched_getaffinity(0, sizeof allowed, &allowed); }
#endif

  // Moves those workers elsewhere that stand on the caller's core. Most kernels wake a thread where nothing runs; those of some
  // virtual machines let two share a core for milliseconds at a time while another stands idle.
  void part(int count) {
#if defined(__linux__)
    const int core = this_core();
    for (int id = 0; id < count; ++id) {
      if (core < 0 || seats[id].core.load(std::memory_order_relaxed) != core) continue;
      cpu_set_t others = allowed;
      CPU_CLR(core, &others);
      if (CPU_COUNT(&others) > 0) sched_setaffinity(seats[id].thread, sizeof others, &others);
      seats[id].core.store(-1, std::memory_order_relaxed);
    }
#endif
  }

  void sit(int id) {  // takes note of where the worker is
    const int core = this_core();
    if (seats[id].core.load(std::memory_order_relaxed) != core) seats[id].core.store(core, std::memory_order_relaxed);
  }

  // A task fails where memory ends. Kernels are compiled without exceptions: one passes through their frames and frees nothing
  // there, so that the blocks they held in the arena are lost.
  void run_tasks();

  bool join(int id) {
    unsigned s = state.load(std::memory_order_acquire);
    while ((s & kOpen) && id < limit.load(std::memory_order_relaxed))
      if (state.compare_exchange_weak(s, s + 1, std::memory_order_acq_rel)) return true;
    return false;
  }

  void work(int id) {
    Watch watch;
    for (;;) {
      // Waiting awake hides the 20 us of a wake-up: between the jobs of one call, and, where no neighbour wants the core,
      // between the calls of a loop.
      const auto start = std::chrono::steady_clock::now();
      bool joined = false, spinning = true;
      for (int spin = 0; !(joined = join(id)); ++spin) {
        if (spinning)
          pause_briefly();
        else
          sched_yield();
        if (spinning && spin % 64 != 63) continue;
        sit(id);
        const auto waited = std::chrono::steady_clock::now() - start;
        spinning = waited < std::chrono::microseconds(50);
        if (waited > std::chrono::microseconds(300)) break;
      }
      if (!joined) {
        std::unique_lock<std::mutex> lock(sleep_mutex);
        sleepers.fetch_add(1);
        wake.wait(lock, [&] { return (state.load() & kOpen) && id < limit.load(); });
        sleepers.fetch_sub(1);
        watch.start();
        continue;
      }
      run_tasks();
      state.fetch_sub(1, std::memory_order_acq_rel);
      if (watch.missed() > kMissed) stay_alone();
      watch.start();
    }
  }

  bool start_worker() {
    const int id = workers;
    try {
      std::thread([this, id] {
#if defined(__linux__)
        seats[id].thread = static_cast<int>(syscall(SYS_gettid));
#endif
        sit(id);
        started.store(id + 1, std::memory_order_release);
        work(id);
      }).detach();
    } catch (const std::exception&) {
      return false;
    }
    ++workers;
    while (started.load(std::memory_order_acquire) <= id) sched_yield();
    return true;
  }

  // Returns what the first task that failed has thrown. Where no more threads are to be had it goes on with those there are.
  std::exception_ptr run(long count, TaskFunction function, void* ctx, int threads) {
    while (workers < threads - 1 && workers < kMaxWorkers)
      if (!start_worker()) break;
    part(threads - 1 < workers ? threads - 1 : workers);
    fn = function;
    context = ctx;
    tasks = count;
    next.store(0, std::memory_order_relaxed);
    limit.store(threads - 1, std::memory_order_relaxed);
    state.store(kOpen);
    if (sleepers.load() > 0) {
      std::lock_guard<std::mutex> lock(sleep_mutex);
      wake.notify_all();
    }
    run_tasks();
    state.fetch_and(~kOpen, std::memory_order_acq_rel);
    for (int spin = 0; state.load(std::memory_order_acquire) != 0; ++spin) {
      pause_briefly();
      if (spin > 4000)
        std::this_thread::sleep_for(std::chrono::microseconds(50));
      else if (spin > 2000)
        sched_yield();
    }
    failed.store(false, std::memory_order_relaxed);
    return std::exchange(error, nullptr);
  }
};

// Leaked on purpose: workers may still wait on it while the process ends. A child of fork has no workers, so it starts anew.
std::atomic<Pool*> pool{nullptr};
thread_local bool inside = false;
thread_local const Pool* working = nullptr;  // whose tasks this thread runs now

void Pool::run_tasks() {
  working = this;
  try {
    for (long i; (i = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) fn(context, i);
  } catch (...) {
    next.store(tasks, std::memory_order_relaxed);
    if (!failed.exchange(true)) error = std::current_exception();
  }
  working = nullptr;
}

Pool* get_pool() {
  Pool* p = pool.load(std::memory_order_acquire);
  if (p) return p;
  static std::once_flag registered;
  std::call_once(registered, [] { pthread_atfork(nullptr, nullptr, [] { pool.store(nullptr); }); });
  Pool* fresh = new Pool;
  if (pool.compare_exchange_strong(p, fresh)) return fresh;
  delete fresh;
  return p;
}

// The smaller of CPU affinity and the cgroup's quota (v2), rounded up.
int default_threads() {
  if (const int forced = forced_threads()) return forced;
  int n = static_cast<int>(std::thread::hardware_concurrency());
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) n = CPU_COUNT(&set);
  if (FILE* file = std::fopen("/sys/fs/cgroup/cpu.max", "r")) {
    long quota = 0, period = 0;
    if (std::fscanf(file, "%ld %ld", &quota, &period) == 2 && quota > 0 && period > 0) {
      const int allowed = static_cast<int>((quota + period - 1) / period);
      if (allowed < n) n = allowed;
    }
    std::fclose(file);
  }
#endif
  return n < 1 ? 1 : n;
}

constexpr int kMostThreads = 1024;

std::atomic<int> threads{0};

}  // namespace

void rest() {
  if (working && working->failed.load(std::memory_order_relaxed)) throw std::bad_alloc();  // what it waits for will not come
  thread_local int64_t first = 0, last = 0;  // of one wait, whose rests follow upon each other
  const int64_t now = nanoseconds(CLOCK_MONOTONIC);
  if (now - last > 100'000) first = now;
  if (now - first > kMissed) stay_alone();
  std::this_thread::sleep_for(std::chrono::microseconds(50));
  last = nanoseconds(CLOCK_MONOTONIC);
}

int lstm_plan() {
  static const int plan = [] {
    const char* name = std::getenv("RHEME_LSTM_PLAN");
    return !name ? 0 : std::string_view(name) == "rows" ? 1 : std::string_view(name) == "units" ? 2 : 0;
  }();
  return plan;
}

int forced_threads() {
  const char* forced = std::getenv("RHEME_NUM_THREADS");
  if (!forced || !*forced) return 0;
  int n = 0;
  const char* end = forced + std::strlen(forced);
  const auto [rest, error] = std::from_chars(forced, end, n);
  if (error != std::errc() || rest != end || n < 1 || n > kMostThreads)
    throw std::runtime_error("RHEME_NUM_THREADS=" + std::string(forced) + " is no whole number from 1 to " +
                             std::to_string(kMostThreads));
  return n;
}

int num_threads() { return alone() ? 1 : chosen_threads(); }

int chosen_threads() {
  int n = threads.load(std::memory_order_relaxed);
  if (n == 0) threads.store(n = default_threads(), std::memory_order_relaxed);
  return n;
}

void set_num_threads(int n) { threads.store(n < 1 ? 1 : n, std::memory_order_relaxed); }

void parallel_for(long tasks, TaskFunction fn, void* context) {
  const int wanted = num_threads();
  const long useful = tasks < wanted ? tasks : wanted;
  if (useful > 1 && !inside) {
    Pool* p = get_pool();
    if (p->owner.try_lock()) {
      inside = true;
      const std::exception_ptr error = p->run(tasks, fn, context, static_cast<int>(useful));
      inside = false;
      p->owner.unlock();
      if (error) std::rethrow_exception(error);
      return;
    }
  }
  for (long i = 0; i < tasks; ++i) fn(context, i);
}

}  // namespace rheme
