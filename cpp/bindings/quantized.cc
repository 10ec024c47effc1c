// Weights stored small, and the ops that compute on them.
#include "arrays.h"

namespace rheme {
namespace {

// A weight in panel order. Opaque and immutable, as Packed is.
struct Quantized {
  QuantizedMatrix matrix{};
  void* blocks[3] = {};  // panels, scale, offsets
  size_t bytes = 0;

  Quantized() = default;
  Quantized(const Quantized&) = delete;
  ~Quantized() {
    for (void* block : blocks) arena_free(block);
  }
  template <class T>
  T* add(int i, long elements) {
    const size_t size = static_cast<size_t>(elements) * sizeof(T);
    blocks[i] = arena_allocate(size);
    bytes += size;
    return static_cast<T*>(blocks[i]);
  }
};

using Matrices = std::vector<const Quantized*>;

std::unique_ptr<Quantized> pack_quantized(const py::array& weight, const Optional& scale, bool gates) {
  refuse_recording("pack_quantized");
  auto made = std::make_unique<Quantized>();
  QuantizedMatrix& m = made->matrix;
  m.c = axis(weight, "weight", 0, 2);
  m.k = axis(weight, "weight", 1, 2);
  m.gates = gates;
  m.half = weight.dtype().equal(py::dtype("float16"));
  if (gates && m.c % 4) refuse("weight", std::to_string(m.c) + " rows, wanted four of each gate");
  PackQuantizedArgs a{};
  a.c = m.c, a.k = m.k, a.half = m.half, a.gates = m.gates;
  if (m.half) {
    if (!(weight.flags() & py::array::c_style)) refuse("weight", "not C-contiguous");
    if (scale) refuse("scale", "only int8 weights have one");
    a.weight = weight.data();
  } else {
    if (!py::isinstance<py::array_t<int8_t>>(weight))
      refuse("weight", "dtype " + std::string(py::str(weight.dtype())) + ", wanted int8 or float16");
    if (!scale) refuse("scale", "an int8 weight needs one");
    if (m.k > 65535) refuse("weight", std::to_string(m.k) + " columns, at most 65535: their products must fit int32");
    a.weight = checked<int8_t>(weight, "weight", {-1, -1});
    a.scale = checked<float>(scale, "scale", {m.c});
  }
  const long columns = quantized_columns(m.c, m.gates);
  if (m.half) {
    a.panels = made->add<uint16_t>(0, columns * m.k);
  } else {
    a.panels = made->add<int8_t>(0, columns * ((m.k + 3) / 4 * 4));
    m.scale = a.panel_scale = made->add<float>(1, columns);
    m.offsets = a.offsets = made->add<int32_t>(2, columns);
  }
  m.panels = a.panels;
  call(kernels().quantized.pack, a);
  return made;
}

py::array unpack_quantized(const Quantized& weight) {
  UnpackQuantizedArgs a{};
  a.matrix = weight.matrix;
  py::array out = make<float>({a.matrix.c, a.matrix.k});
  a.weight = data<float>(out);
  call(kernels().quantized.unpack, a);
  return out;
}

const QuantizedMatrix& plain(const Quantized& weight) {
  if (weight.matrix.gates) refuse("weight", "packed for an LSTM");
  keep(weight);
  return weight.matrix;
}

py::array quantized_linear(const py::array& x, const Quantized& weight, const Optional& bias) {
  QuantizedLinearArgs a{};
  a.weight = plain(weight);
  a.m = axis(x, "x", 0, 2);
  a.x = checked<float>(x, "x", {-1, a.weight.k});
  a.bias = checked<float>(bias, "bias", {a.weight.c});
  py::array y = make<float>({a.m, a.weight.c});
  a.y = data<float>(y);
  call(kernels().quantized.linear, a);
  return y;
}

py::array quantized_embedding(const py::array& ids, const Quantized& weight) {
  QuantizedEmbeddingArgs a{};
  a.weight = plain(weight);
  a.m = axis(ids, "ids", 0, 1);
  a.ids = checked<int64_t>(ids, "ids", {-1});
  check_ids(a.ids, a.m, a.weight.c, "ids");
  py::array y = make<float>({a.m, a.weight.k});
  a.y = data<float>(y);
  call(kernels().quantized.embedding, a);
  return y;
}

py::tuple quantized_lstm(const py::array& x, const Optional& lengths, const Optional& h0, const Optional& c0,
                         const Matrices& w_ih, const Matrices& w_hh, const std::vector<py::array>& bias, bool reverse) {
  QuantizedLstmArgs a{};
  a.time = axis(x, "x", 0, 3);
  a.batch = axis(x, "x", 1, 3);
  a.input = axis(x, "x", 2, 3);
  a.directions = static_cast<long>(w_ih.size());
  a.reverse = reverse;
  if (a.directions < 1 || a.directions > 2) refuse("w_ih", std::to_string(a.directions) + " directions, wanted 1 or 2");
  if (w_hh.size() != w_ih.size() || bias.size() != w_ih.size())
    refuse(w_hh.size() != w_ih.size() ? "w_hh" : "bias", "not as many directions as w_ih has");
  if (reverse && a.directions == 2) refuse("reverse", "only for one direction");
  for (const Quantized* w : {w_ih.front(), w_ih.back(), w_hh.front(), w_hh.back()}) {
    if (!w) refuse("w_ih, w_hh", "None is no weight");
    if (!w->matrix.gates) refuse("w_ih, w_hh", "not packed for an LSTM");
    if (w->matrix.half != w_ih[0]->matrix.half) refuse("w_ih, w_hh", "float16 and int8 mixed");
  }
  a.hidden = w_hh[0]->matrix.k;
  for (long d = 0; d < a.directions; ++d) {
    keep(*w_ih[static_cast<size_t>(d)]);
    keep(*w_hh[static_cast<size_t>(d)]);
    a.w_ih[d] = w_ih[static_cast<size_t>(d)]->matrix;
    a.w_hh[d] = w_hh[static_cast<size_t>(d)]->matrix;
    for (const auto& [m, k, name] : {std::make_tuple(a.w_ih[d], a.input, "w_ih"), std::make_tuple(a.w_hh[d], a.hidden, "w_hh")})
      if (m.c != 4 * a.hidden || m.k != k)
        refuse(name, "shape " + shape_text({m.c, m.k}) + ", wanted " + shape_text({4 * a.hidden, k}));
    a.bias[d] = checked<float>(bias[static_cast<size_t>(d)], "bias", {4 * a.hidden});
  }
  const std::vector<long> state = {a.directions, a.batch, a.hidden};
  a.x = checked<float>(x, "x", {-1, -1, -1});
  a.lengths = checked<int64_t>(lengths, "lengths", {a.batch});
  check_lengths(a.lengths, a.batch, a.time);
  a.h0 = checked<float>(h0, "h0", state);
  a.c0 = checked<float>(c0, "c0", state);
  py::array y = make<float>({a.time, a.batch, a.directions * a.hidden}), h_n = make<float>(state), c_n = make<float>(state);
  a.y = data<float>(y);
  a.h_n = data<float>(h_n);
  a.c_n = data<float>(c_n);
  call(kernels().quantized.lstm, a);
  return py::make_tuple(y, h_n, c_n);
}

}  // namespace

void bind_quantized(py::module_& m) {
  using py::arg;
  py::class_<Quantized>(m, "Quantized")
      .def_property_readonly("nbytes", [](const Quantized& q) { return q.bytes; })
      .def_property_readonly("dtype", [](const Quantized& q) { return q.matrix.half ? "float16" : "int8"; })
      .def_property_readonly("shape", [](const Quantized& q) { return py::make_tuple(q.matrix.c, q.matrix.k); });
  m.def("int8_instruction", [] { return std::string(kernels().quantized.dot); });
  m.def("pack_quantized", &pack_quantized, py::kw_only(), arg("weight"), arg("scale").none(true), arg("gates"));
  m.def("unpack_quantized", &unpack_quantized, py::kw_only(), arg("weight"));
  m.def("quantized_linear", &quantized_linear, py::kw_only(), arg("x"), arg("weight"), arg("bias").none(true));
  m.def("quantized_embedding", &quantized_embedding, py::kw_only(), arg("ids"), arg("weight"));
  m.def("quantized_lstm", &quantized_lstm, py::kw_only(), arg("x"), arg("lengths").none(true), arg("h0").none(true),
        arg("c0").none(true), arg("w_ih"), arg("w_hh"), arg("bias"), arg("reverse"));
}

}  // namespace rheme
