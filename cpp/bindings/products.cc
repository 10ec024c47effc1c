// lstm, linear, matmul and their packed weights.
#include "arrays.h"

namespace rheme {
namespace {

using Arrays = std::vector<py::array>;

long directions_of(const Arrays& w_ih, const Arrays& w_hh) {
  if (w_ih.size() < 1 || w_ih.size() > 2) refuse("w_ih", std::to_string(w_ih.size()) + " directions, wanted 1 or 2");
  if (w_hh.size() != w_ih.size())
    refuse("w_hh", std::to_string(w_hh.size()) + " directions, w_ih has " + std::to_string(w_ih.size()));
  return static_cast<long>(w_ih.size());
}

template <class T>
void pack_lstm_into(Packed& packed, const Arrays& w_ih, const Arrays& w_hh, long input, long hidden) {
  packed.shape = {input, hidden, static_cast<long>(w_ih.size())};
  packed.is_double = sizeof(T) == 8;
  for (size_t d = 0; d < w_ih.size(); ++d) {
    PackLstmArgs<T> args{};
    args.input = input;
    args.hidden = hidden;
    args.w_ih = checked<T>(w_ih[d], "w_ih", {4 * hidden, input});
    args.w_hh = checked<T>(w_hh[d], "w_hh", {4 * hidden, hidden});
    args.panels_ih = packed.add<T>(panel_elements(input, lstm_columns(hidden)));
    args.panels_hh = packed.add<T>(panel_elements(hidden, lstm_columns(hidden)));
    call(table<T>().pack_lstm, args);
  }
}

std::unique_ptr<Packed> pack_lstm(const Arrays& w_ih, const Arrays& w_hh) {
  refuse_recording("pack_lstm");
  directions_of(w_ih, w_hh);
  const long input = axis(w_ih[0], "w_ih", 1, 2), hidden = axis(w_hh[0], "w_hh", 1, 2);
  return by_dtype(w_ih[0], "w_ih", [&](auto zero) {
    auto packed = std::make_unique<Packed>();
    pack_lstm_into<decltype(zero)>(*packed, w_ih, w_hh, input, hidden);
    return packed;
  });
}

py::tuple lstm(const py::array& x, const Optional& lengths, const Optional& h0, const Optional& c0, const Arrays& w_ih,
               const Arrays& w_hh, const Arrays& bias, const Packed* packed, bool reverse, bool save) {
  return by_dtype(x, "x", [&](auto zero) -> py::tuple {
    using T = decltype(zero);
    LstmArgs<T> a{};
    a.time = axis(x, "x", 0, 3);
    a.batch = axis(x, "x", 1, 3);
    a.input = axis(x, "x", 2, 3);
    a.directions = directions_of(w_ih, w_hh);
    a.hidden = axis(w_hh[0], "w_hh", 1, 2);
    a.reverse = reverse;
    if (reverse && a.directions == 2) refuse("reverse", "only for one direction");
    if (bias.size() != w_ih.size())
      refuse("bias", std::to_string(bias.size()) + " directions, w_ih has " + std::to_string(w_ih.size()));
    const std::vector<long> state = {a.directions, a.batch, a.hidden};
    a.x = checked<T>(x, "x", {-1, -1, -1});
    a.lengths = checked<int64_t>(lengths, "lengths", {a.batch});
    check_lengths(a.lengths, a.batch, a.time);
    a.h0 = checked<T>(h0, "h0", state);
    a.c0 = checked<T>(c0, "c0", state);
    Packed own;
    for (long d = 0; d < a.directions; ++d) {
      a.w_ih[d] = checked<T>(w_ih[d], "w_ih", {4 * a.hidden, a.input});
      a.w_hh[d] = checked<T>(w_hh[d], "w_hh", {4 * a.hidden, a.hidden});
      a.bias[d] = checked<T>(bias[d], "bias", {4 * a.hidden});
    }
    const bool once = !packed && a.time == 1 && a.batch == 1;  // packing would cost more than it gains
    if (!packed && !once && Recording::current()) refuse("packed", "a recording keeps none of its own");
    if (!packed && !once) pack_lstm_into<T>(own, w_ih, w_hh, a.input, a.hidden);
    for (long d = 0; d < a.directions && !once; ++d) {
      a.panels_ih[d] = (packed ? packed : &own)->template panels<T>(2 * d, {a.input, a.hidden, a.directions});
      a.panels_hh[d] = (packed ? packed : &own)->template panels<T>(2 * d + 1, {a.input, a.hidden, a.directions});
    }
    py::array y = make<T>({a.time, a.batch, a.directions * a.hidden}), h_n = make<T>(state), c_n = make<T>(state);
    py::object gates = py::none(), cells = py::none();
    if (save) {
      py::array kept_gates = make<T>({a.directions, a.time, a.batch, lstm_columns(a.hidden)});
      py::array kept_cells = make<T>({a.directions, a.time, a.batch, a.hidden});
      a.gates = data<T>(kept_gates);
      a.cells = data<T>(kept_cells);
      gates = kept_gates;
      cells = kept_cells;
    }
    a.y = data<T>(y);
    a.h_n = data<T>(h_n);
    a.c_n = data<T>(c_n);
    call(table<T>().lstm, a);
    return py::make_tuple(y, h_n, c_n, gates, cells);
  });
}

py::tuple lstm_backward(const py::array& dy, const Optional& dh_n, const Optional& dc_n, const py::array& x,
                        const Optional& lengths, const Optional& h0, const Optional& c0, const Arrays& w_ih, const Arrays& w_hh,
                        const py::array& y, const py::array& gates, const py::array& cells, bool reverse, bool need_dx) {
  return by_dtype(x, "x", [&](auto zero) -> py::tuple {
    using T = decltype(zero);
    LstmBackwardArgs<T> a{};
    a.time = axis(x, "x", 0, 3);
    a.batch = axis(x, "x", 1, 3);
    a.input = axis(x, "x", 2, 3);
    a.directions = directions_of(w_ih, w_hh);
    a.hidden = axis(w_hh[0], "w_hh", 1, 2);
    a.reverse = reverse;
    if (reverse && a.directions == 2) refuse("reverse", "only for one direction");
    const std::vector<long> state = {a.directions, a.batch, a.hidden};
    const std::vector<long> output = {a.time, a.batch, a.directions * a.hidden};
    a.dy = checked<T>(dy, "dy", output);
    a.dh_n = checked<T>(dh_n, "dh_n", state);
    a.dc_n = checked<T>(dc_n, "dc_n", state);
    a.x = checked<T>(x, "x", {-1, -1, -1});
    a.lengths = checked<int64_t>(lengths, "lengths", {a.batch});
    check_lengths(a.lengths, a.batch, a.time);
    a.h0 = checked<T>(h0, "h0", state);
    a.c0 = checked<T>(c0, "c0", state);
    a.y = checked<T>(y, "y", output);
    a.gates = checked<T>(gates, "gates", {a.directions, a.time, a.batch, lstm_columns(a.hidden)});
    a.cells = checked<T>(cells, "cells", {a.directions, a.time, a.batch, a.hidden});
    py::array dh0 = make<T>(state), dc0 = make<T>(state);
    a.dh0 = data<T>(dh0);
    a.dc0 = data<T>(dc0);
    py::object dx = py::none();
    if (need_dx) {
      py::array out = make<T>({a.time, a.batch, a.input});
      a.dx = data<T>(out);
      dx = out;
    }
    py::list dw_ih, dw_hh, dbias;
    for (long d = 0; d < a.directions; ++d) {
      a.w_ih[d] = checked<T>(w_ih[d], "w_ih", {4 * a.hidden, a.input});
      a.w_hh[d] = checked<T>(w_hh[d], "w_hh", {4 * a.hidden, a.hidden});
      py::array ih = make<T>({4 * a.hidden, a.input}), hh = make<T>({4 * a.hidden, a.hidden}), b = make<T>({4 * a.hidden});
      a.dw_ih[d] = data<T>(ih);
      a.dw_hh[d] = data<T>(hh);
      a.dbias[d] = data<T>(b);
      dw_ih.append(ih);
      dw_hh.append(hh);
      dbias.append(b);
    }
    call(table<T>().lstm_backward, a);
    return py::make_tuple(dx, dh0, dc0, dw_ih, dw_hh, dbias);
  });
}

std::unique_ptr<Packed> pack_linear(const py::array& weight) {
  refuse_recording("pack_linear");
  return by_dtype(weight, "weight", [&](auto zero) {
    using T = decltype(zero);
    PackLinearArgs<T> a{};
    a.c = axis(weight, "weight", 0, 2);
    a.k = axis(weight, "weight", 1, 2);
    a.weight = checked<T>(weight, "weight", {-1, -1});
    auto packed = std::make_unique<Packed>();
    packed->shape = {a.c, a.k};
    packed->is_double = sizeof(T) == 8;
    a.panels = packed->add<T>(panel_elements(a.k, a.c));
    call(table<T>().pack_linear, a);
    return packed;
  });
}

py::array linear(const py::array& x, const py::array& weight, const Optional& bias, const Packed* packed) {
  return by_dtype(x, "x", [&](auto zero) {
    using T = decltype(zero);
    LinearArgs<T> a{};
    a.m = axis(x, "x", 0, 2);
    a.k = axis(x, "x", 1, 2);
    a.c = axis(weight, "weight", 0, 2);
    a.x = checked<T>(x, "x", {-1, -1});
    a.weight = checked<T>(weight, "weight", {a.c, a.k});
    a.bias = checked<T>(bias, "bias", {a.c});
    if (packed) a.panels = packed->panels<T>(0, {a.c, a.k});
    py::array y = make<T>({a.m, a.c});
    a.y = data<T>(y);
    call(table<T>().linear, a);
    return y;
  });
}

py::tuple linear_backward(const py::array& dy, const py::array& x, const py::array& weight, bool need_dx, bool need_dweight,
                          bool need_dbias) {
  return by_dtype(x, "x", [&](auto zero) -> py::tuple {
    using T = decltype(zero);
    LinearBackwardArgs<T> a{};
    a.m = axis(x, "x", 0, 2);
    a.k = axis(x, "x", 1, 2);
    a.c = axis(weight, "weight", 0, 2);
    a.x = checked<T>(x, "x", {-1, -1});
    a.weight = checked<T>(weight, "weight", {a.c, a.k});
    a.dy = checked<T>(dy, "dy", {a.m, a.c});
    py::object results[3] = {py::none(), py::none(), py::none()};
    if (need_dx) {
      py::array out = make<T>({a.m, a.k});
      a.dx = data<T>(out);
      results[0] = out;
    }
    if (need_dweight) {
      py::array out = make<T>({a.c, a.k});
      a.dweight = data<T>(out);
      results[1] = out;
    }
    if (need_dbias) {
      py::array out = make<T>({a.c});
      a.dbias = data<T>(out);
      results[2] = out;
    }
    call(table<T>().linear_backward, a);
    return py::make_tuple(results[0], results[1], results[2]);
  });
}

py::array matmul(const py::array& a, const py::array& b, bool transpose_a, bool transpose_b) {
  return by_dtype(a, "a", [&](auto zero) {
    using T = decltype(zero);
    MatmulArgs<T> args{};
    args.batch = axis(a, "a", 0, 3);
    args.m = axis(a, "a", transpose_a ? 2 : 1, 3);
    args.k = axis(a, "a", transpose_a ? 1 : 2, 3);
    args.c = axis(b, "b", transpose_b ? 1 : 2, 3);
    args.transpose_a = transpose_a;
    args.transpose_b = transpose_b;
    args.a = checked<T>(a, "a", {-1, -1, -1});
    args.b = checked<T>(b, "b", {args.batch, transpose_b ? args.c : args.k, transpose_b ? args.k : args.c});
    py::array y = make<T>({args.batch, args.m, args.c});
    args.y = data<T>(y);
    call(table<T>().matmul, args);
    return y;
  });
}

}  // namespace

void bind_products(py::module_& m) {
  using py::arg;
  m.def("pack_lstm", &pack_lstm, py::kw_only(), arg("w_ih"), arg("w_hh"));
  m.def("lstm", &lstm, py::kw_only(), arg("x"), arg("lengths").none(true), arg("h0").none(true), arg("c0").none(true),
        arg("w_ih"), arg("w_hh"), arg("bias"), arg("packed").none(true), arg("reverse"), arg("save"));
  m.def("lstm_backward", &lstm_backward, py::kw_only(), arg("dy"), arg("dh_n").none(true), arg("dc_n").none(true), arg("x"),
        arg("lengths").none(true), arg("h0").none(true), arg("c0").none(true), arg("w_ih"), arg("w_hh"), arg("y"), arg("gates"),
        arg("cells"), arg("reverse"), arg("need_dx"));
  m.def("pack_linear", &pack_linear, py::kw_only(), arg("weight"));
  m.def("linear", &linear, py::kw_only(), arg("x"), arg("weight"), arg("bias").none(true), arg("packed").none(true));
  m.def("linear_backward", &linear_backward, py::kw_only(), arg("dy"), arg("x"), arg("weight"), arg("need_dx"),
        arg("need_dweight"), arg("need_dbias"));
  m.def("matmul", &matmul, py::kw_only(), arg("a"), arg("b"), arg("transpose_a"), arg("transpose_b"));
}

}  // namespace rheme
