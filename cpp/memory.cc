#include "memory.h"

#include <pthread.h>
#include <sys/mman.h>

#include <cstdint>
#include <cstdlib>
#include <mutex>
#include <new>
#include <vector>

namespace rheme {
namespace {

constexpr size_t kHeader = 64;
constexpr size_t kHuge = size_t(2) << 20;
constexpr int kClasses = 64 * 4;

// Four sizes to each power of two: at most a quarter of a block is lost, and batches of nearly equal shape share blocks.
int size_class(size_t bytes) {
  if (bytes <= 64) return 0;
  const int log = 63 - __builtin_clzll(bytes - 1);
  const int quarter = static_cast<int>(((bytes - 1) >> (log - 2)) & 3);
  return (log - 6) * 4 + quarter + 1;
}

size_t class_bytes(int c) {
  if (c == 0) return 64;
  const int log = (c - 1) / 4 + 6, quarter = (c - 1) % 4;
  return (size_t(1) << log) + ((size_t(quarter) + 1) << (log - 2));
}

struct Arena {
  std::mutex mutex;
  std::vector<void*> kept[kClasses];
  size_t total = 0;
};

// Leaked on purpose: arrays may outlive static destruction. The fork handlers keep a child from inheriting a locked mutex.
Arena& arena() {
  static Arena* a = [] {
    Arena* fresh = new Arena;
    pthread_atfork([] { arena().mutex.lock(); }, [] { arena().mutex.unlock(); }, [] { arena().mutex.unlock(); });
    return fresh;
  }();
  return *a;
}

// A few small blocks that a thread freed and will want again: no lock, and its own cache still holds them.
struct Own {
  static constexpr int kSmall = 57, kDepth = 4;  // classes of at most 1 MB
  void* kept[kSmall][kDepth];
  int count[kSmall] = {};
  bool open = true;

  bool keep(int c, void* block) {
    if (c >= kSmall || count[c] == kDepth || !open) return false;
    kept[c][count[c]++] = block;
    return true;
  }
  void* take(int c) { return c < kSmall && count[c] ? kept[c][--count[c]] : nullptr; }
  ~Own() {
    open = false;  // arrays may be freed later still
    Arena& a = arena();
    std::lock_guard<std::mutex> lock(a.mutex);
    for (int c = 0; c < kSmall; ++c)
      while (count[c]) a.kept[c].push_back(kept[c][--count[c]]);
  }
};

thread_local Own own;

}  // namespace

void* arena_allocate(size_t bytes) {
  const int c = size_class(bytes);
  if (void* block = own.take(c)) return block;
  Arena& a = arena();
  {
    std::lock_guard<std::mutex> lock(a.mutex);
    if (!a.kept[c].empty()) {
      void* block = a.kept[c].back();
      a.kept[c].pop_back();
      return block;
    }
  }
  const size_t size = class_bytes(c) + kHeader;
  const size_t alignment = size >= kHuge ? kHuge : 64;
  const size_t rounded = (size + alignment - 1) / alignment * alignment;
  char* raw = static_cast<char*>(std::aligned_alloc(alignment, rounded));
  if (!raw) throw std::bad_alloc();
#if defined(MADV_HUGEPAGE)
  if (alignment == kHuge) madvise(raw, rounded, MADV_HUGEPAGE);  // first touch of 4K pages costs three times as much
#endif
  *reinterpret_cast<int64_t*>(raw) = c;
  std::lock_guard<std::mutex> lock(a.mutex);
  a.total += rounded;
  return raw + kHeader;
}

void arena_free(void* block) {
  if (!block) return;
  const int c = static_cast<int>(*reinterpret_cast<int64_t*>(static_cast<char*>(block) - kHeader));
  if (own.keep(c, block)) return;
  Arena& a = arena();
  std::lock_guard<std::mutex> lock(a.mutex);
  a.kept[c].push_back(block);
}

size_t arena_bytes() {
  Arena& a = arena();
  std::lock_guard<std::mutex> lock(a.mutex);
  return a.total;
}

}  // namespace rheme
