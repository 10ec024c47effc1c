// The only cpuid: which tables this CPU can run, and which is in use. RHEME_ISA forces one, or raises.
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

#include "kernels.h"

namespace rheme {

long panel_elements(long k, long c) { return (c + 63) / 64 * 64 * k; }
long lstm_columns(long hidden) { return (hidden + 15) / 16 * 64; }
long quantized_columns(long c, int gates) { return gates ? lstm_columns(c / 4) : (c + 63) / 64 * 64; }
bool keeps_logits(long m, long v, long element_bytes) { return m * v <= (256L << 20) / element_bytes; }

namespace {

#define RHEME_FILL(ns)        \
  static Kernels table = [] { \
    Kernels k{};              \
    k.isa = #ns;              \
    RHEME_FILL_ALL(ns)        \
    return k;                 \
  }();                        \
  return &table;
#define RHEME_FILL_ALL(ns)    \
  ns::fill_attention(k);      \
  ns::fill_cross_entropy(k);  \
  ns::fill_elementwise(k);    \
  ns::fill_embedding(k);      \
  ns::fill_gaussian(k);       \
  ns::fill_gemm(k);           \
  ns::fill_layer_norm(k);     \
  ns::fill_lstm(k);           \
  ns::fill_lstm_backward(k);  \
  ns::fill_optim(k);          \
  ns::fill_quantized(k);      \
  ns::fill_quantized_lstm(k); \
  ns::fill_random(k);         \
  ns::fill_reduce(k);         \
  ns::fill_sample(k);         \
  ns::fill_softmax(k);

// The table of an ISA, but for what its int8 instructions do.
#define RHEME_FILL_INT8(ns, ordinary) \
  static Kernels table = [] {         \
    Kernels k = *ordinary##_table();  \
    k.isa = #ns;                      \
    ns::fill_quantized(k);            \
    ns::fill_quantized_lstm(k);       \
    return k;                         \
  }();                                \
  return &table;

#if defined(__x86_64__)
const Kernels* baseline_table() { RHEME_FILL(baseline) }
const Kernels* avx2_table() { RHEME_FILL(avx2) }
const Kernels* avx512_table() { RHEME_FILL(avx512) }
const Kernels* avx2_vnni_table() { RHEME_FILL_INT8(avx2_vnni, avx2) }
const Kernels* avx512_vnni_table() { RHEME_FILL_INT8(avx512_vnni, avx512) }
#elif defined(__aarch64__)
const Kernels* neon_table() { RHEME_FILL(neon) }
const Kernels* neon_dotprod_table() { RHEME_FILL_INT8(neon_dotprod, neon) }
#else
const Kernels* baseline_table() { RHEME_FILL(baseline) }
#endif

#if defined(__aarch64__)
bool has_dotprod() {
#if defined(__linux__)
  return getauxval(AT_HWCAP) & HWCAP_ASIMDDP;
#else
  return true;  // every other 64-bit Arm that runs this (Apple's) has it
#endif
}
#endif

struct Isa {
  const char* name;
  const Kernels* (*table)();
  bool supported;
};

// Widest first. The baseline is the floor of the x86-64 ABI, SSE2; 64-bit Arm always has NEON.
const Isa* isas() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  static const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                             __builtin_cpu_supports("fma");
  static const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  static const Isa list[] = {{"avx512_vnni", avx512_vnni_table, avx512 && __builtin_cpu_supports("avx512vnni")},
                             {"avx512", avx512_table, avx512},
                             {"avx2_vnni", avx2_vnni_table, avx2 && __builtin_cpu_supports("avxvnni")},
                             {"avx2", avx2_table, avx2},
                             {"baseline", baseline_table, true},
                             {nullptr, nullptr, false}};
#elif defined(__aarch64__)
  static const Isa list[] = {
      {"neon_dotprod", neon_dotprod_table, has_dotprod()}, {"neon", neon_table, true}, {nullptr, nullptr, false}};
#else
  static const Isa list[] = {{"baseline", baseline_table, true}, {nullptr, nullptr, false}};
#endif
  return list;
}

const Kernels* choose() {
  if (const char* forced = std::getenv("RHEME_ISA"); forced && *forced) {
    if (const Kernels* k = find_kernels(forced)) return k;
    std::string names;
    for (const char* const* n = available_isas(); *n; ++n) names += std::string(names.empty() ? "" : ", ") + *n;
    throw std::runtime_error("RHEME_ISA=" + std::string(forced) + " can't be had here; this CPU and build have: " + names);
  }
  return find_kernels(available_isas()[0]);
}

const Kernels* current = nullptr;

}  // namespace

const Kernels* find_kernels(const char* name) {
  for (const Isa* isa = isas(); isa->name; ++isa)
    if (isa->supported && std::strcmp(isa->name, name) == 0) return isa->table();
  return nullptr;
}

const char* const* available_isas() {
  static const char* names[8] = {};
  if (!names[0]) {
    int count = 0;
    for (const Isa* isa = isas(); isa->name; ++isa)
      if (isa->supported) names[count++] = isa->name;
  }
  return names;
}

const Kernels& kernels() {
  if (!current) current = choose();
  return *current;
}

void use_kernels(const Kernels* k) { current = k; }

}  // namespace rheme
