// Random numbers and optimisers.
#include <array>
#include <cmath>
#include <cstdint>

#define RHEME_FN static inline
#include "../formulas.h"
#include "arrays.h"

namespace rheme {
namespace {

std::vector<uint32_t> philox(const std::array<uint32_t, 4>& counter, const std::array<uint32_t, 2>& key) {
  std::vector<uint32_t> c(counter.begin(), counter.end());
  philox4x32_10(c[0], c[1], c[2], c[3], key[0], key[1]);
  return c;
}

template <class T>
RandomArgs<T> random_args(uint64_t seed, uint64_t stream, uint64_t position, py::array& y) {
  RandomArgs<T> a{};
  a.seed = seed;
  a.stream = stream;
  a.position = position;
  a.n = y.size();
  a.y = data<T>(y);
  return a;
}

py::array random_bits(uint64_t seed, uint64_t stream, uint64_t position, long n) {
  if (n < 0) refuse("n", std::to_string(n) + ", wanted 0 or more");
  py::array y = make<uint64_t>({n});
  call(kernels().random_bits, random_args<uint64_t>(seed, stream, position, y));
  return y;
}

template <class Member>
auto random_floats(Member member) {
  return [member](uint64_t seed, uint64_t stream, uint64_t position, const std::vector<long>& shape, const std::string& dtype) {
    for (long n : shape)
      if (n < 0) refuse("shape", "negative size in " + shape_text(shape));
    const auto run = [&](auto zero) {
      using T = decltype(zero);
      py::array y = make<T>(shape);
      call(member(table<T>()), random_args<T>(seed, stream, position, y));
      return y;
    };
    if (dtype == "float32") return run(float());
    if (dtype == "float64") return run(double());
    refuse("dtype", "'" + dtype + "', wanted float32 or float64");
  };
}

double global_norm(const std::vector<py::array>& arrays) {
  refuse_recording("global_norm");
  double total = 0;
  for (const py::array& x : arrays)
    total += by_dtype(x, "arrays", [&](auto zero) {
      using T = decltype(zero);
      double sum = 0;
      SquaresArgs<T> a{};
      a.n = x.size();
      a.x = checked<T>(x, "arrays", shape_of(x));
      a.sum = &sum;
      call(table<T>().sum_of_squares, a);
      return sum;
    });
  return std::sqrt(total);
}

void adamw(const py::array& param, const py::array& grad, const py::array& m, const py::array& v, double learning_rate,
           double beta1, double beta2, double epsilon, double weight_decay, long step, double grad_scale) {
  if (step < 1) refuse("step", std::to_string(step) + ", wanted 1 or more");
  by_dtype(param, "param", [&](auto zero) {
    using T = decltype(zero);
    AdamwArgs<T> a{};
    const std::vector<long> shape = shape_of(param);
    a.n = param.size();
    a.param = checked<T>(param, "param", shape, true);
    a.grad = checked<T>(grad, "grad", shape);
    a.m = checked<T>(m, "m", shape, true);
    a.v = checked<T>(v, "v", shape, true);
    a.grad_scale = static_cast<T>(grad_scale);
    a.beta1 = static_cast<T>(beta1);
    a.one_minus_beta1 = static_cast<T>(1 - beta1);
    a.beta2 = static_cast<T>(beta2);
    a.one_minus_beta2 = static_cast<T>(1 - beta2);
    a.decay = static_cast<T>(1 - learning_rate * weight_decay);
    a.step_size = static_cast<T>(learning_rate / (1 - std::pow(beta1, static_cast<double>(step))));
    a.root_correction = static_cast<T>(1 / std::sqrt(1 - std::pow(beta2, static_cast<double>(step))));
    a.epsilon = static_cast<T>(epsilon);
    call(table<T>().adamw, a);
  });
}

void sgd(const py::array& param, const py::array& grad, const Optional& momentum_buffer, double learning_rate, double momentum,
         double weight_decay, double grad_scale) {
  by_dtype(param, "param", [&](auto zero) {
    using T = decltype(zero);
    SgdArgs<T> a{};
    const std::vector<long> shape = shape_of(param);
    a.n = param.size();
    a.param = checked<T>(param, "param", shape, true);
    a.grad = checked<T>(grad, "grad", shape);
    if (momentum_buffer) a.momentum_buffer = checked<T>(*momentum_buffer, "momentum_buffer", shape, true);
    a.grad_scale = static_cast<T>(grad_scale);
    a.learning_rate = static_cast<T>(learning_rate);
    a.momentum = static_cast<T>(momentum);
    a.weight_decay = static_cast<T>(weight_decay);
    call(table<T>().sgd, a);
  });
}

}  // namespace

void bind_random_optim(py::module_& m) {
  using py::arg;
  m.def("philox", &philox, py::kw_only(), arg("counter"), arg("key"));
  m.def("random_bits", &random_bits, py::kw_only(), arg("seed"), arg("stream"), arg("position"), arg("n"));
  m.def("random_uniform", random_floats([](const auto& t) { return t.random_uniform; }), py::kw_only(), arg("seed"),
        arg("stream"), arg("position"), arg("shape"), arg("dtype"));
  m.def("random_normal", random_floats([](const auto& t) { return t.random_normal; }), py::kw_only(), arg("seed"),
        arg("stream"), arg("position"), arg("shape"), arg("dtype"));
  m.def("global_norm", &global_norm, py::kw_only(), arg("arrays"));
  m.def("adamw", &adamw, py::kw_only(), arg("param"), arg("grad"), arg("m"), arg("v"), arg("learning_rate"), arg("beta1"),
        arg("beta2"), arg("epsilon"), arg("weight_decay"), arg("step"), arg("grad_scale"));
  m.def("sgd", &sgd, py::kw_only(), arg("param"), arg("grad"), arg("momentum_buffer").none(true), arg("learning_rate"),
        arg("momentum"), arg("weight_decay"), arg("grad_scale"));
}

}  // namespace rheme
