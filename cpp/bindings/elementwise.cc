// Elementwise ops, dropout, layer_norm and reductions.
#include <cmath>

#include "arrays.h"

namespace rheme {
namespace {

template <class Member>
auto binary(Member member) {
  return [member](const py::array& a, const py::array& b) {
    return by_dtype(a, "a", [&](auto zero) {
      using T = decltype(zero);
      BinaryArgs<T> args{};
      args.m = axis(a, "a", 0, 2);
      args.c = axis(a, "a", 1, 2);
      args.a = checked<T>(a, "a", {-1, -1});
      args.b = checked<T>(b, "b", {-1, -1});
      const long rows = b.shape(0), columns = b.shape(1);
      if ((rows != 1 && rows != args.m) || (columns != 1 && columns != args.c))
        refuse("b", "shape " + shape_text(shape_of(b)) + ", wanted what broadcasts to " + shape_text(shape_of(a)));
      args.b_rows = rows == args.m;  // one row for one row is its own
      args.b_columns = columns == args.c;
      py::array y = make<T>({args.m, args.c});
      args.y = data<T>(y);
      call(member(table<T>()), args);
      return y;
    });
  };
}

template <class Member>
auto unary(Member member) {
  return [member](const py::array& x) {
    return by_dtype(x, "x", [&](auto zero) {
      using T = decltype(zero);
      UnaryArgs<T> a{};
      a.n = x.size();
      a.x = checked<T>(x, "x", shape_of(x));
      py::array y = make<T>(shape_of(x));
      a.y = data<T>(y);
      call(member(table<T>()), a);
      return y;
    });
  };
}

template <class Member>
auto unary_backward(const char* name, Member member) {
  return [name, member](const py::array& dy, const py::array& saved) {
    return by_dtype(saved, name, [&](auto zero) {
      using T = decltype(zero);
      UnaryBackwardArgs<T> a{};
      a.n = saved.size();
      a.saved = checked<T>(saved, name, shape_of(saved));
      a.dy = checked<T>(dy, "dy", shape_of(saved));
      py::array dx = make<T>(shape_of(saved));
      a.dx = data<T>(dx);
      call(member(table<T>()), a);
      return dx;
    });
  };
}

py::array dropout(const py::array& x, double p, uint64_t seed, uint64_t stream, long period) {
  return by_dtype(x, "x", [&](auto zero) {
    using T = decltype(zero);
    if (!(p >= 0 && p <= 1)) refuse("p", std::to_string(p) + ", wanted 0..1");
    if (period < 0) refuse("period", std::to_string(period) + ", wanted 0 or more");
    DropoutArgs<T> a{};
    a.n = x.size();
    a.period = period;
    a.threshold = static_cast<uint32_t>(std::ceil(p * 16777216.0));
    a.scale = p < 1 ? static_cast<T>(1.0 / (1.0 - p)) : T(0);
    a.seed = seed;
    a.stream = stream;
    a.x = checked<T>(x, "x", shape_of(x));
    py::array y = make<T>(shape_of(x));
    a.y = data<T>(y);
    call(table<T>().dropout, a);
    return y;
  });
}

py::tuple layer_norm(const py::array& x, const py::array& weight, const py::array& bias, double epsilon) {
  return by_dtype(x, "x", [&](auto zero) -> py::tuple {
    using T = decltype(zero);
    LayerNormArgs<T> a{};
    a.m = axis(x, "x", 0, 2);
    a.c = axis(x, "x", 1, 2);
    a.epsilon = static_cast<T>(epsilon);
    a.x = checked<T>(x, "x", {-1, -1});
    a.weight = checked<T>(weight, "weight", {a.c});
    a.bias = checked<T>(bias, "bias", {a.c});
    py::array y = make<T>({a.m, a.c}), mean = make<T>({a.m}), rstd = make<T>({a.m});
    a.y = data<T>(y);
    a.mean = data<T>(mean);
    a.rstd = data<T>(rstd);
    call(table<T>().layer_norm, a);
    return py::make_tuple(y, mean, rstd);
  });
}

py::tuple layer_norm_backward(const py::array& dy, const py::array& x, const py::array& weight, const py::array& mean,
                              const py::array& rstd) {
  return by_dtype(x, "x", [&](auto zero) -> py::tuple {
    using T = decltype(zero);
    LayerNormBackwardArgs<T> a{};
    a.m = axis(x, "x", 0, 2);
    a.c = axis(x, "x", 1, 2);
    a.dy = checked<T>(dy, "dy", {a.m, a.c});
    a.x = checked<T>(x, "x", {-1, -1});
    a.weight = checked<T>(weight, "weight", {a.c});
    a.mean = checked<T>(mean, "mean", {a.m});
    a.rstd = checked<T>(rstd, "rstd", {a.m});
    py::array dx = make<T>({a.m, a.c}), dweight = make<T>({a.c}), dbias = make<T>({a.c});
    a.dx = data<T>(dx);
    a.dweight = data<T>(dweight);
    a.dbias = data<T>(dbias);
    call(table<T>().layer_norm_backward, a);
    return py::make_tuple(dx, dweight, dbias);
  });
}

template <class T>
ReduceArgs<T> reduce_args(const py::array& x, const Optional& mask) {
  ReduceArgs<T> a{};
  a.a = axis(x, "x", 0, 3);
  a.k = axis(x, "x", 1, 3);
  a.c = axis(x, "x", 2, 3);
  a.x = checked<T>(x, "x", {-1, -1, -1});
  a.mask = checked<uint8_t>(mask, "mask", {a.a, a.k, a.c});
  return a;
}

template <class Member>
auto reduction(Member member) {
  return [member](const py::array& x, const Optional& mask) {
    return by_dtype(x, "x", [&](auto zero) {
      using T = decltype(zero);
      ReduceArgs<T> a = reduce_args<T>(x, mask);
      py::array y = make<T>({a.a, a.c});
      a.y = data<T>(y);
      call(member(table<T>()), a);
      return y;
    });
  };
}

py::tuple max(const py::array& x, const Optional& mask) {
  return by_dtype(x, "x", [&](auto zero) -> py::tuple {
    using T = decltype(zero);
    ReduceArgs<T> a = reduce_args<T>(x, mask);
    py::array y = make<T>({a.a, a.c}), positions = make<int64_t>({a.a, a.c});
    a.y = data<T>(y);
    a.positions = data<int64_t>(positions);
    call(table<T>().max, a);
    return py::make_tuple(y, positions);
  });
}

}  // namespace

void bind_elementwise(py::module_& m) {
  using py::arg;
#define RHEME_BINARY(name) m.def(#name, binary([](const auto& t) { return t.name; }), py::kw_only(), arg("a"), arg("b"));
  RHEME_BINARY(add)
  RHEME_BINARY(sub)
  RHEME_BINARY(mul)
  RHEME_BINARY(div)
#undef RHEME_BINARY
#define RHEME_UNARY(name) m.def(#name, unary([](const auto& t) { return t.name; }), py::kw_only(), arg("x"));
  RHEME_UNARY(neg)
  RHEME_UNARY(exp)
  RHEME_UNARY(log)
  RHEME_UNARY(tanh)
  RHEME_UNARY(sigmoid)
  RHEME_UNARY(relu)
#undef RHEME_UNARY
#define RHEME_BACKWARD(name, saved) \
  m.def(#name, unary_backward(saved, [](const auto& t) { return t.name; }), py::kw_only(), arg("dy"), arg(saved));
  RHEME_BACKWARD(exp_backward, "y")
  RHEME_BACKWARD(log_backward, "x")
  RHEME_BACKWARD(tanh_backward, "y")
  RHEME_BACKWARD(sigmoid_backward, "y")
  RHEME_BACKWARD(relu_backward, "y")
#undef RHEME_BACKWARD
  m.def("dropout", &dropout, py::kw_only(), arg("x"), arg("p"), arg("seed"), arg("stream"), arg("period"));
  m.def("layer_norm", &layer_norm, py::kw_only(), arg("x"), arg("weight"), arg("bias"), arg("epsilon"));
  m.def("layer_norm_backward", &layer_norm_backward, py::kw_only(), arg("dy"), arg("x"), arg("weight"), arg("mean"),
        arg("rstd"));
  m.def("sum", reduction([](const auto& t) { return t.sum; }), py::kw_only(), arg("x"), arg("mask").none(true));
  m.def("mean", reduction([](const auto& t) { return t.mean; }), py::kw_only(), arg("x"), arg("mask").none(true));
  m.def("logsumexp", reduction([](const auto& t) { return t.logsumexp; }), py::kw_only(), arg("x"), arg("mask").none(true));
  m.def("max", &max, py::kw_only(), arg("x"), arg("mask").none(true));
}

}  // namespace rheme
