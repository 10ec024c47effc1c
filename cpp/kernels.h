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
  const T* w_ih;  // (4H, I)
  const T* w_hh;  // (4H, H)
  T* panels_ih;   // panel_elements(I, lstm_columns(H)); 64 columns are the 4 gates of 16 units
  T* panels_hh;   // panel_elements(H, lstm_columns(H))
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
  const T* panels_ih[2];   // per direction, as PackLstmArgs makes them; null for one step of one row, which takes
  const T* panels_hh[2];
  const T* w_ih[2];  // (4H, I)
  const T* w_hh[2];  // (4H, H)
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
struct EmbeddingArgs {
  long m, c;
  const int64_t* ids;  // (M,), each a row of weight
  const T* weight;     // (V, C)
  T* y;                // (M, C)
};

template <class T>
struct EmbeddingBackwardArgs {
  long m, c, num_embeddings;
  const T* dy;           // (M, C)
  const int64_t* ids;    // (M,), each below num_embeddings
  const int64_t* order;  // (M,): positions by ascending id, equal ones by ascending position; or null
  T* dweight;            // (V, C)
};

template <class T>
struct AttentionArgs {
  long time, source, batch, hidden, columns;
  T scale;
  const T* query;          // (T, N, H)
  const T* key;            // (S, N, H)
  const T* value;          // (S, N, C)
  const int64_t* lengths;  // (N,), each 0..S, or null
  T* context;              // (T, N, C)
  T* weights;              // (N, T, S)
};

template <class T>
struct AttentionBackwardArgs {
  long time, source, batch, hidden, columns;
  T scale;
  const T* dcontext;  // (T, N, C)
  const T* dweights;  // (N, T, S) or null
  const T* query;
  const T* key;
  const T* value;
  const T* weights;
  T* dquery;  // (T, N, H)
  T* dkey;    // (S, N, H)
  T* dvalue;  // (S, N, C)
};

template <class T>
struct SoftmaxArgs {
  long m, c;
  const T* x;           // (M, C)
  const uint8_t* mask;  // (M, C) or null; 0 hides
  T* y;                 // (M, C)
};

template <class T>
struct SoftmaxBackwardArgs {
  long m, c;
  const T* dy;  // (M, C)
  const T* y;   // (M, C)
  T* dx;        // (M, C)
};

bool keeps_logits(long m, long v, long element_bytes);  // whether linear_cross_entropy hands its logits to its backward

template <class T>
struct CrossEntropyArgs {
  long m, k, v;
  int64_t ignore_index;
  double label_smoothing;
  const T* x;              // (M, K)
  const T* weight;         // (V, K)
  const T* bias;           // (V,) or null
  const int64_t* targets;  // (M,), each 0..V-1 or ignore_index
  T* loss;                 // (M,)
  T* lse;                  // (M,); null in cross_entropy
  T* logits;               // (M, V) or null; in cross_entropy given, and x and weight null
  T* dlogits;              // (M, V) or null, in cross_entropy alone: the gradient of the sum of the losses
};

template <class T>
struct CrossEntropyBackwardArgs {
  long m, k, v;
  int64_t ignore_index;
  double label_smoothing;
  const T* dloss;  // (M,)
  const T* x;
  const T* weight;
  const T* bias;
  const int64_t* targets;
  const T* lse;
  const T* logits;  // (M, V) or null: computed again
  T* dx;            // (M, K)
  T* dweight;       // (V, K)
  T* dbias;         // (V,) or null
};

template <class T>
struct SampleArgs {
  long n, v, top_k;  // top_k 0 keeps all
  double temperature, top_p, min_p;
  const T* logits;       // (N, V)
  const uint64_t* bits;  // (N,)
  int64_t* ids;          // (N,)
};

template <class T>
struct TopKArgs {
  long n, v, k;
  const T* x;    // (N, V)
  T* values;     // (N, K)
  int64_t* ids;  // (N, K)
};

template <class T>
struct GaussianArgs {
  long n, d;
  int over_batch;  // free bits apply to the mean over N of each column, else to each element
  T free_bits;
  const T* mu;      // (N, D)
  const T* logvar;  // (N, D)
  const T* eps;     // (N, D)
  T* z;             // (N, D)
  T* kl;            // (N, D)
};

template <class T>
struct GaussianBackwardArgs {
  long n, d;
  int over_batch;
  T free_bits;
  const T* dz;   // (N, D)
  const T* dkl;  // (N, D)
  const T* mu;
  const T* logvar;
  const T* eps;
  T* dmu;      // (N, D)
  T* dlogvar;  // (N, D)
};

template <class T>
struct BinaryArgs {
  long m, c;
  int b_rows, b_columns;  // 1 where b has M rows, or C columns, of its own; 0 where it has one for all
  const T* a;             // (M, C)
  const T* b;
  T* y;  // (M, C)
};

// y = f(x), and dx = f(dy, what the forward pass took or made).
template <class T>
struct UnaryArgs {
  long n;
  const T* x;
  T* y;
};
template <class T>
struct UnaryBackwardArgs {
  long n;
  const T* dy;
  const T* saved;
  T* dx;
};

template <class T>
struct DropoutArgs {
  long n, period;      // period 0: every element draws for itself
  uint32_t threshold;  // kept where the upper 24 bits of the word reach it
  T scale;
  uint64_t seed, stream;
  const T* x;
  T* y;
};

template <class T>
struct LayerNormArgs {
  long m, c;
  T epsilon;
  const T* x;       // (M, C)
  const T* weight;  // (C,)
  const T* bias;    // (C,)
  T* y;             // (M, C)
  T* mean;          // (M,)
  T* rstd;          // (M,)
};

template <class T>
struct LayerNormBackwardArgs {
  long m, c;
  const T* dy;      // (M, C)
  const T* x;       // (M, C)
  const T* weight;  // (C,)
  const T* mean;
  const T* rstd;
  T* dx;       // (M, C)
  T* dweight;  // (C,)
  T* dbias;    // (C,)
};

template <class T>
struct ReduceArgs {
  long a, k, c;
  const T* x;           // (A, K, C)
  const uint8_t* mask;  // (A, K, C) or null; 0 hides
  T* y;                 // (A, C)
  int64_t* positions;   // (A, C), of max alone
};

template <class T>
struct AdamwArgs {
  long n;
  T grad_scale, beta1, one_minus_beta1, beta2, one_minus_beta2;
  T decay;            // 1 - learning rate * weight decay
  T step_size;        // learning rate / (1 - beta1^step)
  T root_correction;  // 1 / sqrt(1 - beta2^step)
  T epsilon;
  T* param;  // (n,), updated in place, as m and v
  const T* grad;
  T* m;
  T* v;
};

template <class T>
struct SgdArgs {
  long n;
  T grad_scale, learning_rate, momentum, weight_decay;
  T* param;  // (n,), updated in place, as the buffer
  const T* grad;
  T* momentum_buffer;  // (n,) or null
};

template <class T>
struct SquaresArgs {
  long n;
  const T* x;
  double* sum;  // of the squares
};

// From the words of Philox4x32-10 with key `seed` and counters (position, stream), (position + 1, stream), ...
template <class T>
struct RandomArgs {
  uint64_t seed, stream, position;
  long n;
  T* y;
};

// A weight (C, K) kept small for inference and computed on as it is. See quantized.h.
struct QuantizedMatrix {
  long c, k;
  int half;                // float16, else int8 with a scale a row of the weight, that is a column of the product
  int gates;               // 4H rows in the order of the LSTM's panels
  const void* panels;      // int8 [panels][ceil(K / 4)][64][4], or float16 [panels][K][64]; zeros in the padding
  const float* scale;      // int8: (panels * 64,), in the panels' order
  const int32_t* offsets;  // int8: (panels * 64,), -128 times the sum of the column
};
long quantized_columns(long c, int gates);  // with the padding: a multiple of 64

struct PackQuantizedArgs {
  long c, k;
  int half, gates;
  const void* weight;  // int8 or float16 (C, K)
  const float* scale;  // int8: (C,)
  void* panels;
  float* panel_scale;
  int32_t* offsets;
};

struct UnpackQuantizedArgs {
  QuantizedMatrix matrix;
  float* weight;  // (C, K)
};

struct QuantizedLinearArgs {
  long m;
  QuantizedMatrix weight;
  const float* x;     // (M, K)
  const float* bias;  // (C,) or null
  float* y;           // (M, C)
};

struct QuantizedEmbeddingArgs {
  long m;
  QuantizedMatrix weight;
  const int64_t* ids;  // (M,), each a row of weight
  float* y;            // (M, K)
};

struct QuantizedLstmArgs {
  long time, batch, input, hidden, directions;
  int reverse;
  const float* x;           // (T, N, I)
  const int64_t* lengths;   // (N,) or null
  const float* h0;          // (R, N, H) or null
  const float* c0;          // (R, N, H) or null
  QuantizedMatrix w_ih[2];  // gates; all of one kind
  QuantizedMatrix w_hh[2];
  const float* bias[2];  // (4H,)
  float* y;              // (T, N, R*H), written whole: zero past a row's length
  float* h_n;            // (R, N, H)
  float* c_n;            // (R, N, H)
};

struct QuantizedTable {
  const char* dot;  // the instruction that multiplies int8, for `rheme info`
  void (*pack)(const PackQuantizedArgs&);
  void (*unpack)(const UnpackQuantizedArgs&);
  void (*linear)(const QuantizedLinearArgs&);
  void (*embedding)(const QuantizedEmbeddingArgs&);
  void (*lstm)(const QuantizedLstmArgs&);
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
  void (*embedding)(const EmbeddingArgs<T>&);
  void (*embedding_backward)(const EmbeddingBackwardArgs<T>&);
  void (*attention)(const AttentionArgs<T>&);
  void (*attention_backward)(const AttentionBackwardArgs<T>&);
  void (*softmax)(const SoftmaxArgs<T>&);
  void (*softmax_backward)(const SoftmaxBackwardArgs<T>&);
  void (*log_softmax)(const SoftmaxArgs<T>&);
  void (*log_softmax_backward)(const SoftmaxBackwardArgs<T>&);
  void (*cross_entropy)(const CrossEntropyArgs<T>&);
  void (*linear_cross_entropy)(const CrossEntropyArgs<T>&);
  void (*linear_cross_entropy_backward)(const CrossEntropyBackwardArgs<T>&);
  void (*sample)(const SampleArgs<T>&);
  void (*top_k)(const TopKArgs<T>&);
  void (*gaussian_kl)(const GaussianArgs<T>&);
  void (*gaussian_kl_backward)(const GaussianBackwardArgs<T>&);
  void (*add)(const BinaryArgs<T>&);
  void (*sub)(const BinaryArgs<T>&);
  void (*mul)(const BinaryArgs<T>&);
  void (*div)(const BinaryArgs<T>&);
  void (*neg)(const UnaryArgs<T>&);
  void (*exp)(const UnaryArgs<T>&);
  void (*log)(const UnaryArgs<T>&);
  void (*tanh)(const UnaryArgs<T>&);
  void (*sigmoid)(const UnaryArgs<T>&);
  void (*relu)(const UnaryArgs<T>&);
  void (*exp_backward)(const UnaryBackwardArgs<T>&);
  void (*log_backward)(const UnaryBackwardArgs<T>&);
  void (*tanh_backward)(const UnaryBackwardArgs<T>&);
  void (*sigmoid_backward)(const UnaryBackwardArgs<T>&);
  void (*relu_backward)(const UnaryBackwardArgs<T>&);
  void (*dropout)(const DropoutArgs<T>&);
  void (*layer_norm)(const LayerNormArgs<T>&);
  void (*layer_norm_backward)(const LayerNormBackwardArgs<T>&);
  void (*sum)(const ReduceArgs<T>&);
  void (*mean)(const ReduceArgs<T>&);
  void (*max)(const ReduceArgs<T>&);
  void (*logsumexp)(const ReduceArgs<T>&);
  void (*sum_of_squares)(const SquaresArgs<T>&);
  void (*adamw)(const AdamwArgs<T>&);
  void (*sgd)(const SgdArgs<T>&);
  void (*random_uniform)(const RandomArgs<T>&);
  void (*random_normal)(const RandomArgs<T>&);
  double (*fma_peak)(long iterations);  // GFLOP/s of one thread on independent chains held in registers
};

struct Kernels {
  const char* isa;
  Table<float> f32;
  Table<double> f64;
  QuantizedTable quantized;
  void (*random_bits)(const RandomArgs<uint64_t>&);
};

// dispatch.cc
const Kernels& kernels();  // the ISA in use; throws std::runtime_error where RHEME_ISA names one that can't be had
const Kernels* find_kernels(const char*);  // null where the ISA is unknown, not built or not supported by this CPU
const char* const* available_isas();       // null-terminated, widest first
void use_kernels(const Kernels*);

// The fill functions, one per kernel file and ISA, are the only symbols that those objects export.
#define RHEME_DECLARE_ISA(ns)         \
  namespace ns {                      \
  void fill_attention(Kernels&);      \
  void fill_cross_entropy(Kernels&);  \
  void fill_elementwise(Kernels&);    \
  void fill_embedding(Kernels&);      \
  void fill_gaussian(Kernels&);       \
  void fill_gemm(Kernels&);           \
  void fill_layer_norm(Kernels&);     \
  void fill_lstm(Kernels&);           \
  void fill_lstm_backward(Kernels&);  \
  void fill_optim(Kernels&);          \
  void fill_quantized(Kernels&);      \
  void fill_quantized_lstm(Kernels&); \
  void fill_random(Kernels&);         \
  void fill_reduce(Kernels&);         \
  void fill_sample(Kernels&);         \
  void fill_softmax(Kernels&);        \
  }
RHEME_DECLARE_ISA(baseline)
RHEME_DECLARE_ISA(avx2)
RHEME_DECLARE_ISA(avx512)
RHEME_DECLARE_ISA(neon)

// The same ISA with instructions for int8: only the files that use them are compiled once more.
#define RHEME_DECLARE_INT8(ns)        \
  namespace ns {                      \
  void fill_quantized(Kernels&);      \
  void fill_quantized_lstm(Kernels&); \
  }
RHEME_DECLARE_INT8(avx2_vnni)
RHEME_DECLARE_INT8(avx512_vnni)
RHEME_DECLARE_INT8(neon_dotprod)

}  // namespace rheme
