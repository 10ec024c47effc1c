// Runs the kernels on the cases of a golden file (tests/neon/golden.py) and compares: bits with those of the machine that wrote
// the file, values with the float64 reference. Links the kernels as the extension module does, without Python, so that the
// objects for another architecture can be tried under an emulator.
//
//   rheme_check FILE [threads...]
//
// A golden file is a list of records, little-endian: int32 length of the op's name, name, int32 number of entries, and for each
// entry int32 length of its name, name, char role, char kind, double tolerance, int32 axes, int64 sizes, then the elements.
// Role: i input, o output whose bits count, s output whose shape alone is told, r reference (f64) for the output of that name.
// Kind: f float32, d float64, l int64, u uint64, b uint8, c int8, h float16.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "../../cpp/kernels.h"
#include "../../cpp/memory.h"
#include "../../cpp/threads.h"

namespace {

using namespace rheme;

struct Entry {
  std::string name;
  char role = 0, kind = 0;
  double tolerance = 0;
  std::vector<long> shape;
  long count = 1;
  size_t bytes = 0;
  void* data = nullptr;
};

size_t element_bytes(char kind) { return kind == 'b' || kind == 'c' ? 1 : kind == 'h' ? 2 : kind == 'f' ? 4 : 8; }

// One op with its inputs, what it should give, and what it gave.
struct Record {
  std::string op;
  std::vector<Entry> entries;
  std::map<std::string, void*> outputs;

  const Entry* find(const std::string& name, char role) const {
    for (const Entry& e : entries)
      if (e.role == role && e.name == name) return &e;
    return nullptr;
  }
  const Entry& want(const std::string& name, char role) const {
    const Entry* e = find(name, role);
    if (!e) std::fprintf(stderr, "%s: no entry %s of role %c\n", op.c_str(), name.c_str(), role), std::exit(2);
    return *e;
  }
  const Entry* result(const std::string& name) const {
    const Entry* e = find(name, 'o');
    return e ? e : find(name, 's');
  }
  bool is_double() const {
    for (const Entry& e : entries)
      if (e.role == 'i' && e.kind == 'f') return false;
    return true;
  }
  long axis(const std::string& name, int i) const { return want(name, 'i').shape.at(static_cast<size_t>(i)); }
  long integer(const std::string& name) const { return static_cast<long>(*static_cast<int64_t*>(want(name, 'i').data)); }
  double number(const std::string& name) const { return *static_cast<double*>(want(name, 'i').data); }
  template <class T>
  const T* in(const std::string& name) const {  // null where the argument is None
    const Entry* e = find(name, 'i');
    return e ? static_cast<const T*>(e->data) : nullptr;
  }
  // A block for an output, filled with NaN so that what is not written shows; null where the op gives None.
  template <class T>
  T* out(const std::string& name) {
    const Entry* e = result(name);
    if (!e) return nullptr;
    void* block = arena_allocate(e->bytes + 1);
    std::memset(block, 0xff, e->bytes);
    outputs[name] = block;
    return static_cast<T*>(block);
  }
  template <class T>
  T* in_place(const std::string& name) {
    T* block = out<T>(name);
    if (block) std::memcpy(block, want(name, 'i').data, want(name, 'i').bytes);
    return block;
  }
};

template <class T>
const Table<T>& table();
template <>
const Table<float>& table<float>() {
  return kernels().f32;
}
template <>
const Table<double>& table<double>() {
  return kernels().f64;
}

std::string at(const char* name, long i) { return std::string(name) + "." + std::to_string(i); }

template <class T>
T* scratch(long elements) {
  return static_cast<T*>(arena_allocate(static_cast<size_t>(elements) * sizeof(T) + 1));
}

template <class T>
void lstm(Record& r) {
  LstmArgs<T> a{};
  a.time = r.axis("x", 0), a.batch = r.axis("x", 1), a.input = r.axis("x", 2), a.hidden = r.axis("w_hh.0", 1);
  a.directions = r.find("w_hh.1", 'i') ? 2 : 1, a.reverse = static_cast<int>(r.integer("reverse"));
  a.x = r.in<T>("x"), a.lengths = r.in<int64_t>("lengths"), a.h0 = r.in<T>("h0"), a.c0 = r.in<T>("c0");
  std::vector<T*> blocks;
  for (long d = 0; d < a.directions; ++d) {
    PackLstmArgs<T> p{};
    p.input = a.input, p.hidden = a.hidden, p.w_ih = r.in<T>(at("w_ih", d)), p.w_hh = r.in<T>(at("w_hh", d));
    blocks.push_back(p.panels_ih = scratch<T>(panel_elements(a.input, lstm_columns(a.hidden))));
    blocks.push_back(p.panels_hh = scratch<T>(panel_elements(a.hidden, lstm_columns(a.hidden))));
    table<T>().pack_lstm(p);
    a.panels_ih[d] = p.panels_ih, a.panels_hh[d] = p.panels_hh, a.bias[d] = r.in<T>(at("bias", d));
  }
  a.y = r.out<T>("y"), a.h_n = r.out<T>("h_n"), a.c_n = r.out<T>("c_n");
  a.gates = r.out<T>("gates"), a.cells = r.out<T>("cells");
  table<T>().lstm(a);
  for (T* block : blocks) arena_free(block);
}

template <class T>
void lstm_backward(Record& r) {
  LstmBackwardArgs<T> a{};
  a.time = r.axis("x", 0), a.batch = r.axis("x", 1), a.input = r.axis("x", 2), a.hidden = r.axis("w_hh.0", 1);
  a.directions = r.find("w_hh.1", 'i') ? 2 : 1, a.reverse = static_cast<int>(r.integer("reverse"));
  a.dy = r.in<T>("dy"), a.dh_n = r.in<T>("dh_n"), a.dc_n = r.in<T>("dc_n");
  a.x = r.in<T>("x"), a.lengths = r.in<int64_t>("lengths"), a.h0 = r.in<T>("h0"), a.c0 = r.in<T>("c0");
  a.y = r.in<T>("y"), a.gates = r.in<T>("gates"), a.cells = r.in<T>("cells");
  a.dx = r.out<T>("dx"), a.dh0 = r.out<T>("dh0"), a.dc0 = r.out<T>("dc0");
  for (long d = 0; d < a.directions; ++d) {
    a.w_ih[d] = r.in<T>(at("w_ih", d)), a.w_hh[d] = r.in<T>(at("w_hh", d));
    a.dw_ih[d] = r.out<T>(at("dw_ih", d)), a.dw_hh[d] = r.out<T>(at("dw_hh", d)), a.dbias[d] = r.out<T>(at("dbias", d));
  }
  table<T>().lstm_backward(a);
}

// The weight as it is, and once more in panels: both have to give the same bits.
template <class T>
void linear(Record& r) {
  LinearArgs<T> a{};
  a.m = r.axis("x", 0), a.k = r.axis("x", 1), a.c = r.axis("weight", 0);
  a.x = r.in<T>("x"), a.weight = r.in<T>("weight"), a.bias = r.in<T>("bias"), a.y = r.out<T>("y");
  table<T>().linear(a);
  PackLinearArgs<T> p{};
  T* panels = scratch<T>(panel_elements(a.k, a.c));
  p.k = a.k, p.c = a.c, p.weight = a.weight, p.panels = panels;
  table<T>().pack_linear(p);
  a.panels = panels, a.y = r.out<T>("packed y");
  table<T>().linear(a);
  arena_free(panels);
}

template <class T>
void linear_backward(Record& r) {
  LinearBackwardArgs<T> a{};
  a.m = r.axis("x", 0), a.k = r.axis("x", 1), a.c = r.axis("weight", 0);
  a.dy = r.in<T>("dy"), a.x = r.in<T>("x"), a.weight = r.in<T>("weight");
  a.dx = r.out<T>("dx"), a.dweight = r.out<T>("dweight"), a.dbias = r.out<T>("dbias");
  table<T>().linear_backward(a);
}

template <class T>
void matmul(Record& r) {
  MatmulArgs<T> a{};
  a.transpose_a = static_cast<int>(r.integer("transpose_a")), a.transpose_b = static_cast<int>(r.integer("transpose_b"));
  a.batch = r.axis("a", 0), a.m = r.axis("a", a.transpose_a ? 2 : 1), a.k = r.axis("a", a.transpose_a ? 1 : 2);
  a.c = r.axis("b", a.transpose_b ? 1 : 2), a.a = r.in<T>("a"), a.b = r.in<T>("b"), a.y = r.out<T>("y");
  table<T>().matmul(a);
}

template <class T>
void embedding(Record& r) {
  EmbeddingArgs<T> a{};
  a.m = r.axis("ids", 0), a.c = r.axis("weight", 1), a.ids = r.in<int64_t>("ids"), a.weight = r.in<T>("weight");
  a.y = r.out<T>("y");
  table<T>().embedding(a);
}

template <class T>
void embedding_backward(Record& r) {
  EmbeddingBackwardArgs<T> a{};
  a.m = r.axis("dy", 0), a.c = r.axis("dy", 1), a.num_embeddings = r.integer("num_embeddings");
  a.dy = r.in<T>("dy"), a.ids = r.in<int64_t>("ids"), a.order = r.in<int64_t>("order"), a.dweight = r.out<T>("y");
  table<T>().embedding_backward(a);
}

template <class T>
void attention(Record& r) {
  AttentionArgs<T> a{};
  a.time = r.axis("query", 0), a.batch = r.axis("query", 1), a.hidden = r.axis("query", 2);
  a.source = r.axis("key", 0), a.columns = r.axis("value", 2), a.scale = static_cast<T>(r.number("scale"));
  a.query = r.in<T>("query"), a.key = r.in<T>("key"), a.value = r.in<T>("value"), a.lengths = r.in<int64_t>("lengths");
  a.context = r.out<T>("context"), a.weights = r.out<T>("weights");
  table<T>().attention(a);
}

template <class T>
void attention_backward(Record& r) {
  AttentionBackwardArgs<T> a{};
  a.time = r.axis("query", 0), a.batch = r.axis("query", 1), a.hidden = r.axis("query", 2);
  a.source = r.axis("key", 0), a.columns = r.axis("value", 2), a.scale = static_cast<T>(r.number("scale"));
  a.dcontext = r.in<T>("dcontext"), a.dweights = r.in<T>("dweights"), a.query = r.in<T>("query"), a.key = r.in<T>("key");
  a.value = r.in<T>("value"), a.weights = r.in<T>("weights");
  a.dquery = r.out<T>("dquery"), a.dkey = r.out<T>("dkey"), a.dvalue = r.out<T>("dvalue");
  table<T>().attention_backward(a);
}

template <class T>
SoftmaxArgs<T> softmax_args(Record& r) {
  return {r.axis("x", 0), r.axis("x", 1), r.in<T>("x"), r.in<uint8_t>("mask"), r.out<T>("y")};
}
template <class T>
SoftmaxBackwardArgs<T> softmax_backward_args(Record& r) {
  return {r.axis("y", 0), r.axis("y", 1), r.in<T>("dy"), r.in<T>("y"), r.out<T>("dx")};
}

template <class T>
void linear_cross_entropy(Record& r) {
  CrossEntropyArgs<T> a{};
  a.m = r.axis("x", 0), a.k = r.axis("x", 1), a.v = r.axis("weight", 0);
  a.ignore_index = r.integer("ignore_index"), a.label_smoothing = r.number("label_smoothing");
  a.x = r.in<T>("x"), a.weight = r.in<T>("weight"), a.bias = r.in<T>("bias"), a.targets = r.in<int64_t>("targets");
  a.loss = r.out<T>("loss"), a.lse = r.out<T>("lse"), a.logits = r.out<T>("logits");
  table<T>().linear_cross_entropy(a);
}

template <class T>
void linear_cross_entropy_backward(Record& r) {
  CrossEntropyBackwardArgs<T> a{};
  a.m = r.axis("x", 0), a.k = r.axis("x", 1), a.v = r.axis("weight", 0);
  a.ignore_index = r.integer("ignore_index"), a.label_smoothing = r.number("label_smoothing");
  a.dloss = r.in<T>("dloss"), a.x = r.in<T>("x"), a.weight = r.in<T>("weight"), a.bias = r.in<T>("bias");
  a.targets = r.in<int64_t>("targets"), a.lse = r.in<T>("lse"), a.logits = r.in<T>("logits");
  a.dx = r.out<T>("dx"), a.dweight = r.out<T>("dweight"), a.dbias = r.out<T>("dbias");
  table<T>().linear_cross_entropy_backward(a);
}

template <class T>
void sample(Record& r) {
  SampleArgs<T> a{};
  a.n = r.axis("logits", 0), a.v = r.axis("logits", 1), a.top_k = r.integer("top_k");
  a.temperature = r.number("temperature"), a.top_p = r.number("top_p"), a.min_p = r.number("min_p");
  a.logits = r.in<T>("logits"), a.bits = r.in<uint64_t>("bits"), a.ids = r.out<int64_t>("ids");
  table<T>().sample(a);
}

template <class T>
void top_k(Record& r) {
  TopKArgs<T> a{};
  a.n = r.axis("x", 0), a.v = r.axis("x", 1), a.k = r.integer("k"), a.x = r.in<T>("x");
  a.values = r.out<T>("values"), a.ids = r.out<int64_t>("ids");
  table<T>().top_k(a);
}

template <class T>
void gaussian_kl(Record& r) {
  GaussianArgs<T> a{};
  a.n = r.axis("mu", 0), a.d = r.axis("mu", 1), a.over_batch = static_cast<int>(r.integer("over_batch"));
  a.free_bits = static_cast<T>(r.number("free_bits"));
  a.mu = r.in<T>("mu"), a.logvar = r.in<T>("logvar"), a.eps = r.in<T>("eps"), a.z = r.out<T>("z"), a.kl = r.out<T>("kl");
  table<T>().gaussian_kl(a);
}

template <class T>
void gaussian_kl_backward(Record& r) {
  GaussianBackwardArgs<T> a{};
  a.n = r.axis("mu", 0), a.d = r.axis("mu", 1), a.over_batch = static_cast<int>(r.integer("over_batch"));
  a.free_bits = static_cast<T>(r.number("free_bits")), a.dz = r.in<T>("dz"), a.dkl = r.in<T>("dkl");
  a.mu = r.in<T>("mu"), a.logvar = r.in<T>("logvar"), a.eps = r.in<T>("eps");
  a.dmu = r.out<T>("dmu"), a.dlogvar = r.out<T>("dlogvar");
  table<T>().gaussian_kl_backward(a);
}

template <class T>
BinaryArgs<T> binary_args(Record& r) {
  BinaryArgs<T> a{};
  a.m = r.axis("a", 0), a.c = r.axis("a", 1);
  a.b_rows = r.axis("b", 0) == a.m, a.b_columns = r.axis("b", 1) == a.c;
  a.a = r.in<T>("a"), a.b = r.in<T>("b"), a.y = r.out<T>("y");
  return a;
}
template <class T>
UnaryArgs<T> unary_args(Record& r) {
  return {r.want("x", 'i').count, r.in<T>("x"), r.out<T>("y")};
}
template <class T>
UnaryBackwardArgs<T> unary_backward_args(Record& r) {
  return {r.want("dy", 'i').count, r.in<T>("dy"), r.in<T>(r.find("x", 'i') ? "x" : "y"), r.out<T>("dx")};
}

template <class T>
void layer_norm(Record& r) {
  LayerNormArgs<T> a{};
  a.m = r.axis("x", 0), a.c = r.axis("x", 1), a.epsilon = static_cast<T>(r.number("epsilon"));
  a.x = r.in<T>("x"), a.weight = r.in<T>("weight"), a.bias = r.in<T>("bias");
  a.y = r.out<T>("y"), a.mean = r.out<T>("mean"), a.rstd = r.out<T>("rstd");
  table<T>().layer_norm(a);
}

template <class T>
void layer_norm_backward(Record& r) {
  LayerNormBackwardArgs<T> a{};
  a.m = r.axis("x", 0), a.c = r.axis("x", 1), a.dy = r.in<T>("dy"), a.x = r.in<T>("x"), a.weight = r.in<T>("weight");
  a.mean = r.in<T>("mean"), a.rstd = r.in<T>("rstd");
  a.dx = r.out<T>("dx"), a.dweight = r.out<T>("dweight"), a.dbias = r.out<T>("dbias");
  table<T>().layer_norm_backward(a);
}

template <class T>
ReduceArgs<T> reduce_args(Record& r) {
  return {r.axis("x", 0),
          r.axis("x", 1),
          r.axis("x", 2),
          r.in<T>("x"),
          r.in<uint8_t>("mask"),
          r.out<T>("y"),
          r.out<int64_t>("positions")};
}

template <class T>
void sum_of_squares(Record& r) {
  table<T>().sum_of_squares({r.want("x", 'i').count, r.in<T>("x"), r.out<double>("sum")});
}

template <class T>
void adamw(Record& r) {
  AdamwArgs<T> a{};
  const auto constant = [&](const char* name) { return *r.in<T>(name); };
  a.n = r.want("param", 'i').count, a.grad = r.in<T>("grad");
  a.grad_scale = constant("grad_scale"), a.beta1 = constant("beta1"), a.one_minus_beta1 = constant("one_minus_beta1");
  a.beta2 = constant("beta2"), a.one_minus_beta2 = constant("one_minus_beta2"), a.decay = constant("decay");
  a.step_size = constant("step_size"), a.root_correction = constant("root_correction"), a.epsilon = constant("epsilon");
  a.param = r.in_place<T>("param"), a.m = r.in_place<T>("m"), a.v = r.in_place<T>("v");
  table<T>().adamw(a);
}

template <class T>
void sgd(Record& r) {
  SgdArgs<T> a{};
  const auto constant = [&](const char* name) { return *r.in<T>(name); };
  a.n = r.want("param", 'i').count, a.grad = r.in<T>("grad"), a.grad_scale = constant("grad_scale");
  a.learning_rate = constant("learning_rate"), a.momentum = constant("momentum"), a.weight_decay = constant("weight_decay");
  a.param = r.in_place<T>("param"), a.momentum_buffer = r.in_place<T>("momentum_buffer");
  table<T>().sgd(a);
}

template <class T>
RandomArgs<T> random_args(Record& r) {
  const auto word = [&](const char* name) { return *r.in<uint64_t>(name); };
  return {word("seed"), word("stream"), word("position"), r.want("y", 'o').count, r.out<T>("y")};
}

// A weight as pack_quantized leaves it, and its blocks.
struct Small {
  QuantizedMatrix matrix{};
  std::vector<void*> blocks;

  Small(const Record& r, const std::string& name, bool gates) {
    const Entry& weight = r.want(name, 'i');
    const bool half = weight.kind == 'h';
    matrix.c = weight.shape[0], matrix.k = weight.shape[1], matrix.half = half, matrix.gates = gates;
    const long columns = quantized_columns(matrix.c, gates);
    PackQuantizedArgs a{};
    a.c = matrix.c, a.k = matrix.k, a.half = half, a.gates = gates, a.weight = weight.data;
    a.scale = r.in<float>("scale of " + name);
    a.panels = keep(half ? static_cast<void*>(scratch<uint16_t>(columns * matrix.k))
                         : static_cast<void*>(scratch<int8_t>(columns * ((matrix.k + 3) / 4 * 4))));
    a.panel_scale = static_cast<float*>(keep(scratch<float>(columns)));
    a.offsets = static_cast<int32_t*>(keep(scratch<int32_t>(columns)));
    matrix.panels = a.panels, matrix.scale = a.panel_scale, matrix.offsets = a.offsets;
    kernels().quantized.pack(a);
  }
  Small(const Small&) = delete;
  ~Small() {
    for (void* block : blocks) arena_free(block);
  }

 private:
  void* keep(void* block) {
    blocks.push_back(block);
    return block;
  }
};

void unpack_quantized(Record& r) {
  const Small weight(r, "weight", r.integer("gates"));
  UnpackQuantizedArgs a{};
  a.matrix = weight.matrix, a.weight = r.out<float>("y");
  kernels().quantized.unpack(a);
}

void quantized_linear(Record& r) {
  const Small weight(r, "weight", false);
  QuantizedLinearArgs a{};
  a.m = r.axis("x", 0), a.weight = weight.matrix, a.x = r.in<float>("x"), a.bias = r.in<float>("bias"), a.y = r.out<float>("y");
  kernels().quantized.linear(a);
}

void quantized_embedding(Record& r) {
  const Small weight(r, "weight", false);
  QuantizedEmbeddingArgs a{};
  a.m = r.axis("ids", 0), a.weight = weight.matrix, a.ids = r.in<int64_t>("ids"), a.y = r.out<float>("y");
  kernels().quantized.embedding(a);
}

void quantized_lstm(Record& r) {
  QuantizedLstmArgs a{};
  a.time = r.axis("x", 0), a.batch = r.axis("x", 1), a.input = r.axis("x", 2), a.hidden = r.axis("w_hh.0", 1);
  a.directions = r.find("w_hh.1", 'i') ? 2 : 1, a.reverse = static_cast<int>(r.integer("reverse"));
  a.x = r.in<float>("x"), a.lengths = r.in<int64_t>("lengths"), a.h0 = r.in<float>("h0"), a.c0 = r.in<float>("c0");
  a.y = r.out<float>("y"), a.h_n = r.out<float>("h_n"), a.c_n = r.out<float>("c_n");
  std::vector<std::unique_ptr<Small>> weights;
  for (long d = 0; d < a.directions; ++d) {
    a.w_ih[d] = weights.emplace_back(std::make_unique<Small>(r, at("w_ih", d), true))->matrix;
    a.w_hh[d] = weights.emplace_back(std::make_unique<Small>(r, at("w_hh", d), true))->matrix;
    a.bias[d] = r.in<float>(at("bias", d));
  }
  kernels().quantized.lstm(a);
}

template <class T>
std::map<std::string, std::function<void(Record&)>> ops() {
  std::map<std::string, std::function<void(Record&)>> m;
#define RHEME_OWN(name) m[#name] = name<T>;
#define RHEME_SHARED(name, args) m[#name] = [](Record& r) { table<T>().name(args<T>(r)); };
  RHEME_OWN(lstm)
  RHEME_OWN(lstm_backward)
  RHEME_OWN(linear)
  RHEME_OWN(linear_backward)
  RHEME_OWN(matmul)
  RHEME_OWN(embedding)
  RHEME_OWN(embedding_backward)
  RHEME_OWN(attention)
  RHEME_OWN(attention_backward)
  RHEME_SHARED(softmax, softmax_args)
  RHEME_SHARED(log_softmax, softmax_args)
  RHEME_SHARED(softmax_backward, softmax_backward_args)
  RHEME_SHARED(log_softmax_backward, softmax_backward_args)
  RHEME_OWN(linear_cross_entropy)
  RHEME_OWN(linear_cross_entropy_backward)
  RHEME_OWN(sample)
  RHEME_OWN(top_k)
  RHEME_OWN(gaussian_kl)
  RHEME_OWN(gaussian_kl_backward)
  RHEME_SHARED(add, binary_args)
  RHEME_SHARED(sub, binary_args)
  RHEME_SHARED(mul, binary_args)
  RHEME_SHARED(div, binary_args)
  RHEME_SHARED(neg, unary_args)
  RHEME_SHARED(exp, unary_args)
  RHEME_SHARED(log, unary_args)
  RHEME_SHARED(tanh, unary_args)
  RHEME_SHARED(sigmoid, unary_args)
  RHEME_SHARED(relu, unary_args)
  RHEME_SHARED(exp_backward, unary_backward_args)
  RHEME_SHARED(log_backward, unary_backward_args)
  RHEME_SHARED(tanh_backward, unary_backward_args)
  RHEME_SHARED(sigmoid_backward, unary_backward_args)
  RHEME_SHARED(relu_backward, unary_backward_args)
  RHEME_OWN(layer_norm)
  RHEME_OWN(layer_norm_backward)
  RHEME_SHARED(sum, reduce_args)
  RHEME_SHARED(mean, reduce_args)
  RHEME_SHARED(max, reduce_args)
  RHEME_SHARED(logsumexp, reduce_args)
  RHEME_OWN(sum_of_squares)
  RHEME_OWN(adamw)
  RHEME_OWN(sgd)
  RHEME_SHARED(random_uniform, random_args)
  RHEME_SHARED(random_normal, random_args)
  m["unpack_quantized"] = unpack_quantized;
  m["quantized_linear"] = quantized_linear;
  m["quantized_embedding"] = quantized_embedding;
  m["quantized_lstm"] = quantized_lstm;
#undef RHEME_OWN
#undef RHEME_SHARED
  m["random_bits"] = [](Record& r) { kernels().random_bits(random_args<uint64_t>(r)); };
  return m;
}

double value(const void* data, char kind, long i) {
  return kind == 'f'   ? static_cast<double>(static_cast<const float*>(data)[i])
         : kind == 'd' ? static_cast<const double*>(data)[i]
                       : static_cast<double>(static_cast<const int64_t*>(data)[i]);
}

// The number of elements that are wrong. Any NaN equals any other: the sign of the one that hardware makes differs.
long compare(const Record& r, const char* said, long number) {
  long wrong = 0;
  for (const Entry& e : r.entries) {
    if (e.role != 'o' && e.role != 'r') continue;
    const auto got = r.outputs.find(e.name);
    if (got == r.outputs.end()) {
      std::printf("%s (record %ld): the check does not make %s\n", r.op.c_str(), number, e.name.c_str());
      ++wrong;
      continue;
    }
    const char kind = r.result(e.name)->kind;
    for (long i = 0; i < e.count; ++i) {
      const double g = value(got->second, kind, i), w = value(e.data, e.kind, i);
      const size_t size = element_bytes(kind);
      const bool equal = e.role == 'o' ? !std::memcmp(static_cast<char*>(got->second) + size * static_cast<size_t>(i),
                                                      static_cast<char*>(e.data) + size * static_cast<size_t>(i), size)
                                       : (std::isfinite(w) ? std::fabs(g - w) <= e.tolerance : g == w);
      if (equal || (g != g && w != w)) continue;
      if (!wrong++)
        std::printf("%s (record %ld, %s): %s[%ld] is %.9g, %s %.9g\n", r.op.c_str(), number, said, e.name.c_str(), i, g,
                    e.role == 'o' ? "the other machine's" : "the reference's", w);
    }
  }
  return wrong;
}

struct Reader {
  std::FILE* file;
  void bytes(void* to, size_t n) {
    if (std::fread(to, 1, n, file) != n) std::fprintf(stderr, "the golden file is cut off\n"), std::exit(2);
  }
  template <class V>
  V get() {
    V v;
    bytes(&v, sizeof v);
    return v;
  }
  std::string text() {
    std::string s(static_cast<size_t>(get<int32_t>()), ' ');
    bytes(&s[0], s.size());
    return s;
  }
  bool record(Record& r) {
    const int next = std::getc(file);
    if (next == EOF) return false;
    std::ungetc(next, file);
    r.op = text();
    r.entries.resize(static_cast<size_t>(get<int32_t>()));
    for (Entry& e : r.entries) {
      e.name = text();
      e.role = get<char>(), e.kind = get<char>(), e.tolerance = get<double>();
      for (int axes = get<int32_t>(); axes; --axes) e.count *= e.shape.emplace_back(static_cast<long>(get<int64_t>()));
      e.bytes = static_cast<size_t>(e.count) * element_bytes(e.kind);
      if (e.role == 's') continue;
      e.data = arena_allocate(e.bytes + 1);
      bytes(e.data, e.bytes);
    }
    return true;
  }
};

}  // namespace

int main(int count, char** arguments) {
  if (count < 2) return std::fprintf(stderr, "usage: rheme_check FILE [threads...]\n"), 2;
  std::vector<int> threads;
  for (int i = 2; i < count; ++i) threads.push_back(std::atoi(arguments[i]));
  if (threads.empty()) threads = {1, 3};
  const auto singles = ops<float>();
  const auto doubles = ops<double>();
  long wrong_records = 0, records = 0, elements = 0;
  std::map<std::string, long> seen;
  Reader reader{std::fopen(arguments[1], "rb")};
  if (!reader.file) return std::perror(arguments[1]), 2;
  for (Record r; reader.record(r); r = Record()) {
    const auto& known = r.is_double() ? doubles : singles;
    const auto op = known.find(r.op);
    if (op == known.end()) return std::fprintf(stderr, "%s: an op that the check does not know\n", r.op.c_str()), 2;
    for (int n : threads) {
      set_num_threads(n);
      op->second(r);
      const std::string said = std::string(kernels().isa) + ", " + std::to_string(n) + " threads";
      wrong_records += compare(r, said.c_str(), records) > 0;
      for (auto& output : r.outputs) arena_free(output.second);
      r.outputs.clear();
    }
    for (Entry& e : r.entries) {
      if (e.role == 'o') elements += e.count;
      arena_free(e.data);
    }
    ++records;
    ++seen[r.op];
  }
  std::fclose(reader.file);
  for (const auto& [name, times] : seen) std::printf("%s %ld\n", name.c_str(), times);
  std::printf("%s: %ld records, %ld elements, %ld wrong\n", kernels().isa, records, elements, wrong_records);
  return wrong_records || !records ? 1 : 0;
}
