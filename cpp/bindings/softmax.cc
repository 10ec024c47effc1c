// embedding, attention, softmax and what stands on it.
#include <algorithm>

#include "arrays.h"

namespace rheme {
namespace {

py::array embedding(const py::array& ids, const py::array& weight) {
  return by_dtype(weight, "weight", [&](auto zero) {
    using T = decltype(zero);
    EmbeddingArgs<T> a{};
    a.m = axis(ids, "ids", 0, 1);
    a.c = axis(weight, "weight", 1, 2);
    a.ids = checked<int64_t>(ids, "ids", {a.m});
    a.weight = checked<T>(weight, "weight", {-1, -1});
    check_ids(a.ids, a.m, weight.shape(0), "ids");
    py::array y = make<T>({a.m, a.c});
    a.y = data<T>(y);
    call(table<T>().embedding, a);
    return y;
  });
}

// ValueError unless ids stand in their order, each position once.
void check_order(const int64_t* ids, const int64_t* order, long m) {
  for (long i = 0; i < m; ++i) {
    const int64_t before = i ? order[i - 1] : -1, at = order[i];
    const bool ascending = at >= 0 && at < m && (i == 0 || ids[before] < ids[at] || (ids[before] == ids[at] && before < at));
    if (!ascending)
      refuse("order", std::to_string(at) + " at position " + std::to_string(i) + ", wanted a stable order of ids");
  }
}

py::array embedding_backward(const py::array& dy, const py::array& ids, long num_embeddings, const Optional& order) {
  return by_dtype(dy, "dy", [&](auto zero) {
    using T = decltype(zero);
    EmbeddingBackwardArgs<T> a{};
    a.m = axis(dy, "dy", 0, 2);
    a.c = axis(dy, "dy", 1, 2);
    if (num_embeddings < 0) refuse("num_embeddings", "negative");
    a.num_embeddings = num_embeddings;
    a.dy = checked<T>(dy, "dy", {-1, -1});
    a.ids = checked<int64_t>(ids, "ids", {a.m});
    check_ids(a.ids, a.m, num_embeddings, "ids");
    a.order = checked<int64_t>(order, "order", {a.m});
    if (a.order) perform([=] { check_order(a.ids, a.order, a.m); });
    py::array dweight = make<T>({num_embeddings, a.c});
    a.dweight = data<T>(dweight);
    call(table<T>().embedding_backward, a);
    return dweight;
  });
}

py::tuple attention(const py::array& query, const py::array& key, const py::array& value, const Optional& lengths,
                    double scale) {
  return by_dtype(query, "query", [&](auto zero) -> py::tuple {
    using T = decltype(zero);
    AttentionArgs<T> a{};
    a.time = axis(query, "query", 0, 3);
    a.batch = axis(query, "query", 1, 3);
    a.hidden = axis(query, "query", 2, 3);
    a.source = axis(key, "key", 0, 3);
    a.columns = axis(value, "value", 2, 3);
    a.scale = static_cast<T>(scale);
    a.query = checked<T>(query, "query", {-1, -1, -1});
    a.key = checked<T>(key, "key", {a.source, a.batch, a.hidden});
    a.value = checked<T>(value, "value", {a.source, a.batch, a.columns});
    a.lengths = checked<int64_t>(lengths, "lengths", {a.batch});
    check_lengths(a.lengths, a.batch, a.source);
    py::array context = make<T>({a.time, a.batch, a.columns}), weights = make<T>({a.batch, a.time, a.source});
    a.context = data<T>(context);
    a.weights = data<T>(weights);
    call(table<T>().attention, a);
    return py::make_tuple(context, weights);
  });
}

py::tuple attention_backward(const py::array& dcontext, const Optional& dweights, const py::array& query, const py::array& key,
                             const py::array& value, const py::array& weights, double scale) {
  return by_dtype(query, "query", [&](auto zero) -> py::tuple {
    using T = decltype(zero);
    AttentionBackwardArgs<T> a{};
    a.time = axis(query, "query", 0, 3);
    a.batch = axis(query, "query", 1, 3);
    a.hidden = axis(query, "query", 2, 3);
    a.source = axis(key, "key", 0, 3);
    a.columns = axis(value, "value", 2, 3);
    a.scale = static_cast<T>(scale);
    a.dcontext = checked<T>(dcontext, "dcontext", {a.time, a.batch, a.columns});
    a.dweights = checked<T>(dweights, "dweights", {a.batch, a.time, a.source});
    a.query = checked<T>(query, "query", {-1, -1, -1});
    a.key = checked<T>(key, "key", {a.source, a.batch, a.hidden});
    a.value = checked<T>(value, "value", {a.source, a.batch, a.columns});
    a.weights = checked<T>(weights, "weights", {a.batch, a.time, a.source});
    py::array dquery = make<T>({a.time, a.batch, a.hidden}), dkey = make<T>({a.source, a.batch, a.hidden});
    py::array dvalue = make<T>({a.source, a.batch, a.columns});
    a.dquery = data<T>(dquery);
    a.dkey = data<T>(dkey);
    a.dvalue = data<T>(dvalue);
    call(table<T>().attention_backward, a);
    return py::make_tuple(dquery, dkey, dvalue);
  });
}

template <class Member>
auto softmax_like(Member member) {
  return [member](const py::array& x, const Optional& mask) {
    return by_dtype(x, "x", [&](auto zero) {
      using T = decltype(zero);
      SoftmaxArgs<T> a{};
      a.m = axis(x, "x", 0, 2);
      a.c = axis(x, "x", 1, 2);
      a.x = checked<T>(x, "x", {-1, -1});
      a.mask = checked<uint8_t>(mask, "mask", {a.m, a.c});
      py::array y = make<T>({a.m, a.c});
      a.y = data<T>(y);
      call(member(table<T>()), a);
      return y;
    });
  };
}

template <class Member>
auto softmax_backward_like(Member member) {
  return [member](const py::array& dy, const py::array& y) {
    return by_dtype(y, "y", [&](auto zero) {
      using T = decltype(zero);
      SoftmaxBackwardArgs<T> a{};
      a.m = axis(y, "y", 0, 2);
      a.c = axis(y, "y", 1, 2);
      a.y = checked<T>(y, "y", {-1, -1});
      a.dy = checked<T>(dy, "dy", {a.m, a.c});
      py::array dx = make<T>({a.m, a.c});
      a.dx = data<T>(dx);
      call(member(table<T>()), a);
      return dx;
    });
  };
}

// What every cross-entropy is asked beside its m rows and v classes.
template <class Args>
void take_targets(Args& a, const py::array& targets, int64_t ignore_index, double label_smoothing) {
  if (!(label_smoothing >= 0 && label_smoothing <= 1))
    refuse("label_smoothing", std::to_string(label_smoothing) + ", wanted 0..1");
  a.ignore_index = ignore_index;
  a.label_smoothing = label_smoothing;
  a.targets = checked<int64_t>(targets, "targets", {a.m});
  check_ids(a.targets, a.m, a.v, "targets", ignore_index);
}

py::tuple cross_entropy(const py::array& logits, const py::array& targets, int64_t ignore_index, double label_smoothing,
                        bool save) {
  return by_dtype(logits, "logits", [&](auto zero) -> py::tuple {
    using T = decltype(zero);
    CrossEntropyArgs<T> a{};
    a.m = axis(logits, "logits", 0, 2);
    a.v = axis(logits, "logits", 1, 2);
    a.logits = checked<T>(logits, "logits", {-1, -1});
    take_targets(a, targets, ignore_index, label_smoothing);
    py::array loss = make<T>({a.m});
    a.loss = data<T>(loss);
    py::object saved = py::none();
    if (save) {
      py::array dlogits = make<T>({a.m, a.v});
      a.dlogits = data<T>(dlogits);
      saved = dlogits;
    }
    call(table<T>().cross_entropy, a);
    return py::make_tuple(loss, saved);
  });
}

// The forward pass has made the gradient of the sum of the losses; a sum asks for nothing else.
py::array cross_entropy_backward(const py::array& dloss, const py::array& logits, const py::array& targets,
                                 const py::array& saved, int64_t ignore_index, double label_smoothing) {
  refuse_recording("cross_entropy_backward");
  return by_dtype(logits, "logits", [&](auto zero) {
    using T = decltype(zero);
    CrossEntropyBackwardArgs<T> a{};
    a.m = axis(logits, "logits", 0, 2);
    a.v = axis(logits, "logits", 1, 2);
    take_targets(a, targets, ignore_index, label_smoothing);
    const T* scale = checked<T>(dloss, "dloss", {a.m});
    const T* gradient = checked<T>(saved, "saved", {a.m, a.v});
    if (std::all_of(scale, scale + a.m, [](T x) { return x == T(1); })) return saved;
    py::array dlogits = make<T>({a.m, a.v});
    const BinaryArgs<T> product = {a.m, a.v, 1, 0, gradient, scale, data<T>(dlogits)};
    call(table<T>().mul, product);
    return dlogits;
  });
}

py::tuple linear_cross_entropy(const py::array& x, const py::array& weight, const Optional& bias, const py::array& targets,
                               int64_t ignore_index, double label_smoothing, bool save) {
  return by_dtype(x, "x", [&](auto zero) -> py::tuple {
    using T = decltype(zero);
    CrossEntropyArgs<T> a{};
    a.m = axis(x, "x", 0, 2);
    a.k = axis(x, "x", 1, 2);
    a.v = axis(weight, "weight", 0, 2);
    a.x = checked<T>(x, "x", {-1, -1});
    a.weight = checked<T>(weight, "weight", {a.v, a.k});
    a.bias = checked<T>(bias, "bias", {a.v});
    take_targets(a, targets, ignore_index, label_smoothing);
    py::array loss = make<T>({a.m}), lse = make<T>({a.m});
    a.loss = data<T>(loss);
    a.lse = data<T>(lse);
    py::object logits = py::none();
    if (save && keeps_logits(a.m, a.v, sizeof(T))) {
      py::array kept = make<T>({a.m, a.v});
      a.logits = data<T>(kept);
      logits = kept;
    }
    call(table<T>().linear_cross_entropy, a);
    return py::make_tuple(loss, lse, logits);
  });
}

py::tuple linear_cross_entropy_backward(const py::array& dloss, const py::array& x, const py::array& weight,
                                        const Optional& bias, const py::array& targets, const py::array& lse,
                                        const Optional& logits, int64_t ignore_index, double label_smoothing) {
  return by_dtype(x, "x", [&](auto zero) -> py::tuple {
    using T = decltype(zero);
    CrossEntropyBackwardArgs<T> a{};
    a.m = axis(x, "x", 0, 2);
    a.k = axis(x, "x", 1, 2);
    a.v = axis(weight, "weight", 0, 2);
    a.dloss = checked<T>(dloss, "dloss", {a.m});
    a.x = checked<T>(x, "x", {-1, -1});
    a.weight = checked<T>(weight, "weight", {a.v, a.k});
    a.bias = checked<T>(bias, "bias", {a.v});
    take_targets(a, targets, ignore_index, label_smoothing);
    a.lse = checked<T>(lse, "lse", {a.m});
    a.logits = checked<T>(logits, "logits", {a.m, a.v});
    py::array dx = make<T>({a.m, a.k}), dweight = make<T>({a.v, a.k});
    a.dx = data<T>(dx);
    a.dweight = data<T>(dweight);
    py::object dbias = py::none();
    if (bias) {
      py::array out = make<T>({a.v});
      a.dbias = data<T>(out);
      dbias = out;
    }
    call(table<T>().linear_cross_entropy_backward, a);
    return py::make_tuple(dx, dweight, dbias);
  });
}

py::array sample(const py::array& logits, const py::array& bits, double temperature, long top_k, double top_p, double min_p) {
  return by_dtype(logits, "logits", [&](auto zero) {
    using T = decltype(zero);
    SampleArgs<T> a{};
    a.n = axis(logits, "logits", 0, 2);
    a.v = axis(logits, "logits", 1, 2);
    if (a.v == 0) refuse("logits", "no columns");
    if (!(temperature >= 0)) refuse("temperature", std::to_string(temperature) + ", wanted 0 or more");
    if (top_k < 0) refuse("top_k", std::to_string(top_k) + ", wanted 0 or more");
    if (!(top_p >= 0 && top_p <= 1)) refuse("top_p", std::to_string(top_p) + ", wanted 0..1");
    if (!(min_p >= 0 && min_p <= 1)) refuse("min_p", std::to_string(min_p) + ", wanted 0..1");
    a.temperature = temperature;
    a.top_k = top_k;
    a.top_p = top_p;
    a.min_p = min_p;
    a.logits = checked<T>(logits, "logits", {-1, -1});
    a.bits = checked<uint64_t>(bits, "bits", {a.n});
    py::array ids = make<int64_t>({a.n});
    a.ids = data<int64_t>(ids);
    call(table<T>().sample, a);
    return ids;
  });
}

py::tuple top_k(const py::array& x, long k) {
  return by_dtype(x, "x", [&](auto zero) -> py::tuple {
    using T = decltype(zero);
    TopKArgs<T> a{};
    a.n = axis(x, "x", 0, 2);
    a.v = axis(x, "x", 1, 2);
    a.k = k;
    if (k < 0 || k > a.v) refuse("k", std::to_string(k) + ", wanted 0.." + std::to_string(a.v));
    a.x = checked<T>(x, "x", {-1, -1});
    py::array values = make<T>({a.n, k}), ids = make<int64_t>({a.n, k});
    a.values = data<T>(values);
    a.ids = data<int64_t>(ids);
    call(table<T>().top_k, a);
    return py::make_tuple(values, ids);
  });
}

bool over_batch(const std::string& free_bits_over) {
  if (free_bits_over != "sample" && free_bits_over != "batch")
    refuse("free_bits_over", "'" + free_bits_over + "', wanted 'sample' or 'batch'");
  return free_bits_over == "batch";
}

py::tuple gaussian_kl(const py::array& mu, const py::array& logvar, const py::array& eps, double free_bits,
                      const std::string& free_bits_over) {
  return by_dtype(mu, "mu", [&](auto zero) -> py::tuple {
    using T = decltype(zero);
    GaussianArgs<T> a{};
    a.n = axis(mu, "mu", 0, 2);
    a.d = axis(mu, "mu", 1, 2);
    a.over_batch = over_batch(free_bits_over);
    a.free_bits = static_cast<T>(free_bits);
    a.mu = checked<T>(mu, "mu", {-1, -1});
    a.logvar = checked<T>(logvar, "logvar", {a.n, a.d});
    a.eps = checked<T>(eps, "eps", {a.n, a.d});
    py::array z = make<T>({a.n, a.d}), kl = make<T>({a.n, a.d});
    a.z = data<T>(z);
    a.kl = data<T>(kl);
    call(table<T>().gaussian_kl, a);
    return py::make_tuple(z, kl);
  });
}

py::tuple gaussian_kl_backward(const py::array& dz, const py::array& dkl, const py::array& mu, const py::array& logvar,
                               const py::array& eps, double free_bits, const std::string& free_bits_over) {
  return by_dtype(mu, "mu", [&](auto zero) -> py::tuple {
    using T = decltype(zero);
    GaussianBackwardArgs<T> a{};
    a.n = axis(mu, "mu", 0, 2);
    a.d = axis(mu, "mu", 1, 2);
    a.over_batch = over_batch(free_bits_over);
    a.free_bits = static_cast<T>(free_bits);
    a.dz = checked<T>(dz, "dz", {a.n, a.d});
    a.dkl = checked<T>(dkl, "dkl", {a.n, a.d});
    a.mu = checked<T>(mu, "mu", {-1, -1});
    a.logvar = checked<T>(logvar, "logvar", {a.n, a.d});
    a.eps = checked<T>(eps, "eps", {a.n, a.d});
    py::array dmu = make<T>({a.n, a.d}), dlogvar = make<T>({a.n, a.d});
    a.dmu = data<T>(dmu);
    a.dlogvar = data<T>(dlogvar);
    call(table<T>().gaussian_kl_backward, a);
    return py::make_tuple(dmu, dlogvar);
  });
}

}  // namespace

void bind_softmax(py::module_& m) {
  using py::arg;
  m.def("embedding", &embedding, py::kw_only(), arg("ids"), arg("weight"));
  m.def("embedding_backward", &embedding_backward, py::kw_only(), arg("dy"), arg("ids"), arg("num_embeddings"), arg("order"));
  m.def("attention", &attention, py::kw_only(), arg("query"), arg("key"), arg("value"), arg("lengths").none(true),
        arg("scale"));
  m.def("attention_backward", &attention_backward, py::kw_only(), arg("dcontext"), arg("dweights").none(true), arg("query"),
        arg("key"), arg("value"), arg("weights"), arg("scale"));
  m.def("softmax", softmax_like([](const auto& t) { return t.softmax; }), py::kw_only(), arg("x"), arg("mask").none(true));
  m.def("log_softmax", softmax_like([](const auto& t) { return t.log_softmax; }), py::kw_only(), arg("x"),
        arg("mask").none(true));
  m.def("softmax_backward", softmax_backward_like([](const auto& t) { return t.softmax_backward; }), py::kw_only(), arg("dy"),
        arg("y"));
  m.def("log_softmax_backward", softmax_backward_like([](const auto& t) { return t.log_softmax_backward; }), py::kw_only(),
        arg("dy"), arg("y"));
  m.def("cross_entropy", &cross_entropy, py::kw_only(), arg("logits"), arg("targets"), arg("ignore_index"),
        arg("label_smoothing"), arg("save"));
  m.def("cross_entropy_backward", &cross_entropy_backward, py::kw_only(), arg("dloss"), arg("logits"), arg("targets"),
        arg("saved"), arg("ignore_index"), arg("label_smoothing"));
  m.def("linear_cross_entropy", &linear_cross_entropy, py::kw_only(), arg("x"), arg("weight"), arg("bias").none(true),
        arg("targets"), arg("ignore_index"), arg("label_smoothing"), arg("save"));
  m.def("linear_cross_entropy_backward", &linear_cross_entropy_backward, py::kw_only(), arg("dloss"), arg("x"), arg("weight"),
        arg("bias").none(true), arg("targets"), arg("lse"), arg("logits").none(true), arg("ignore_index"),
        arg("label_smoothing"));
  m.def("sample", &sample, py::kw_only(), arg("logits"), arg("bits"), arg("temperature"), arg("top_k"), arg("top_p"),
        arg("min_p"));
  m.def("top_k", &top_k, py::kw_only(), arg("x"), arg("k"));
  m.def("gaussian_kl", &gaussian_kl, py::kw_only(), arg("mu"), arg("logvar"), arg("eps"), arg("free_bits"),
        arg("free_bits_over"));
  m.def("gaussian_kl_backward", &gaussian_kl_backward, py::kw_only(), arg("dz"), arg("dkl"), arg("mu"), arg("logvar"),
        arg("eps"), arg("free_bits"), arg("free_bits_over"));
}

}  // namespace rheme
