// The table: one function pointer per op, and the arguments of each op with the shape of every array.
//
// T time, N batch, I input, H hidden, R directions, V vocabulary, D latent, K reduction, M rows, C columns. All arrays are
// row-major and contiguous unless a stride is given, are owned by the caller, and never overlap unless it is said. Null is
// allowed where "or null" is said. Plain data only: the header is shared by objects compiled for different ISAs.
#pragma once

#include <stdint.h>

namespace rheme {

// Weights in panel order: [ceil(C / 64)][K][64], columns padded with zeros. See gemm.h.
long panel_elements(long k, long c);

template <class T>
struct PackLstmArgs {
  long input, hidden;
  const T* w_ih;    // (4H, I)
  const T* w_hh;    // (4H, H)
  T* panels_ih;     // panel_elements(I, lstm_columns(H)); 64 columns are the 4 gates of 16 units
  T* panels_hh;     // panel_elements(H, lstm_columns(H))
};

long lstm_columns(long hidden);  // 4 * H, H rounded up to 16

template <class T>
struct LstmArgs {
  long time, batch, input, hidden, directions;
  int reverse;             // with one direction: run from the last valid step to the first
  const T* x;              // (T, N, I)
  const int64_t* lengths;  // (N,) or null
  const T* h0;             // (R, N, H) or null
  const T* c0;             // (R, N, H) or null
  const T* panels_ih[2];   // per direction, as PackLstmArgs makes them
  const T* panels_hh[2];
  const T* bias[2];  // (4H,)
  T* y;              // (T, N, R*H), written whole: zero past a row's length
  T* h_n;            // (R, N, H)
  T* c_n;            // (R, N, H)
  T* gates;          // (R, T, N, lstm_columns(H)) or null; valid steps only are written
  T* cells;          // (R, T, N, H) or null; valid steps only are written
};

template <class T>
struct LstmBackwardArgs {
  long time, batch, input, hidden, directions;
  int reverse;
  const T* dy;    // (T, N, R*H)
  const T* dh_n;  // (R, N, H) or null
  const T* dc_n;  // (R, N, H) or null
  const T* x;
  const int64_t* lengths;
  const T* h0;
  const T* c0;
  const T* w_ih[2];
  const T* w_hh[2];
  const T* y;
  const T* gates;
  const T* cells;
  T* dx;        // (T, N, I) or null
  T* dh0;       // (R, N, H)
  T* dc0;       // (R, N, H)
  T* dw_ih[2];  // (4H, I)
  T* dw_hh[2];  // (4H, H)
  T* dbias[2];  // (4H,)
};

template <class T>
struct PackLinearArgs {
  long k, c;
  const T* weight;  // (C, K)
  T* panels;        // panel_elements(K, C)
};

template <class T>
struct LinearArgs {
  long m, k, c;
  const T* x;       // (M, K)
  const T* weight;  // (C, K), or null where panels are given
  const T* panels;  // as PackLinearArgs makes them, or null
  const T* bias;    // (C,) or null
  T* y;             // (M, C)
};

template <class T>
struct LinearBackwardArgs {
  long m, k, c;
  const T* dy;      // (M, C)
  const T* x;       // (M, K)
  const T* weight;  // (C, K)
  T* dx;            // (M, K) or null
  T* dweight;       // (C, K) or null
  T* dbias;         // (C,) or null
};

template <class T>
struct MatmulArgs {
  long batch, m, k, c;
  int transpose_a, transpose_b;
  const T* a;  // (B, M, K) or (B, K, M)
  const T* b;  // (B, K, C) or (B, C, K)
  T* y;        // (B, M, C)
};

template <class T>
struct Table {
  void (*pack_lstm)(const PackLstmArgs<T>&);
  void (*lstm)(const LstmArgs<T>&);
  void (*lstm_backward)(const LstmBackwardArgs<T>&);
  void (*pack_linear)(const PackLinearArgs<T>&);
  void (*linear)(const LinearArgs<T>&);
  void (*linear_backward)(const LinearBackwardArgs<T>&);
  void (*matmul)(const MatmulArgs<T>&);
  double (*fma_peak)(long iterations);  // GFLOP/s of one thread on independent chains held in registers
};

struct Kernels {
  const char* isa;
  Table<float> f32;
  Table<double> f64;
};

// dispatch.cc
const Kernels& kernels();                  // the ISA in use; throws std::runtime_error where RHEME_ISA names one that can't be had
const Kernels* find_kernels(const char*);  // null where the ISA is unknown, not built or not supported by this CPU
const char* const* available_isas();       // null-terminated, widest first
void use_kernels(const Kernels*);

// The fill functions, one per kernel file and ISA, are the only symbols that those objects export.
#define RHEME_DECLARE_ISA(ns)      \
  namespace ns {                   \
  void fill_gemm(Kernels&);        \
  void fill_lstm(Kernels&);        \
  }
RHEME_DECLARE_ISA(baseline)
RHEME_DECLARE_ISA(avx2)
RHEME_DECLARE_ISA(avx512)
RHEME_DECLARE_ISA(neon)

}  // namespace rheme
