// How arrays cross the border: checked against a dtype, a layout and a shape, and refused with the name of the argument.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <functional>
#include <initializer_list>
#include <optional>
#include <string>
#include <type_traits>
#include <vector>

#include "../kernels.h"
#include "../memory.h"

namespace rheme {

namespace py = pybind11;
using Optional = std::optional<py::array>;

inline std::string shape_text(const std::vector<long>& shape) {
  std::string text = "(";
  for (size_t i = 0; i < shape.size(); ++i)
    text += (i ? ", " : "") + (shape[i] < 0 ? std::string("any") : std::to_string(shape[i]));
  return text + (shape.size() == 1 ? ",)" : ")");
}

inline std::vector<long> shape_of(const py::array& a) { return std::vector<long>(a.shape(), a.shape() + a.ndim()); }

[[noreturn]] inline void refuse(const std::string& name, const std::string& what) { throw py::value_error(name + ": " + what); }

// What a thread computes from `begin` to `end`, with all that it reads and writes, to be computed again on the same arrays. The
// bindings leave nothing out: an array comes in through `checked` and out of `make`, weights through `keep`, and whatever
// happens to their contents is done by `perform` or `call`.
struct Recording {
  std::vector<std::function<void()>> steps;
  std::vector<py::object> kept;

  static Recording*& current() {
    static thread_local Recording* recording = nullptr;
    return recording;
  }
};

// For what cannot be computed again: it reads or decides something once, or makes what no recording keeps.
inline void refuse_recording(const char* op) {
  if (Recording::current()) throw std::runtime_error(std::string(op) + ": cannot be recorded; call it before");
}

template <class T>
void keep(const T& object) {
  Recording* recording = Recording::current();
  if (!recording) return;
  if constexpr (std::is_base_of_v<py::object, T>)
    recording->kept.push_back(object);
  else
    recording->kept.push_back(py::cast(&object, py::return_value_policy::reference));  // Python's own: packed weights
}

template <class F>
void perform(F step) {
  if (Recording* recording = Recording::current()) recording->steps.emplace_back(step);
  step();
}

// -1 in `shape` is any size. The result is what a.data() is, typed.
template <class T>
T* checked(const py::array& a, const std::string& name, const std::vector<long>& shape, bool writeable = false) {
  if (!py::isinstance<py::array_t<T>>(a))
    refuse(name, "dtype " + std::string(py::str(a.dtype())) + ", wanted " + std::string(py::str(py::dtype::of<T>())));
  bool matches = a.ndim() == static_cast<py::ssize_t>(shape.size());
  for (size_t i = 0; matches && i < shape.size(); ++i) matches = shape[i] < 0 || a.shape(i) == shape[i];
  if (!matches) refuse(name, "shape " + shape_text(shape_of(a)) + ", wanted " + shape_text(shape));
  if (!(a.flags() & py::array::c_style)) refuse(name, "not C-contiguous");
  if (writeable && !a.writeable()) refuse(name, "read-only");
  keep(a);
  return static_cast<T*>(const_cast<void*>(a.data()));
}

template <class T>
T* checked(const Optional& a, const std::string& name, const std::vector<long>& shape) {
  return a ? checked<T>(*a, name, shape) : nullptr;
}

// Size of an axis, before the full check: the rank must be right.
inline long axis(const py::array& a, const char* name, int i, int ndim) {
  if (a.ndim() != ndim) refuse(name, std::to_string(a.ndim()) + " axes, wanted " + std::to_string(ndim));
  return a.shape(i);
}

// Calls f with a float or a double, by the dtype of `a`.
template <class F>
auto by_dtype(const py::array& a, const char* name, F&& f) {
  if (py::isinstance<py::array_t<float>>(a)) return f(float());
  if (py::isinstance<py::array_t<double>>(a)) return f(double());
  refuse(name, "dtype " + std::string(py::str(a.dtype())) + ", wanted float32 or float64");
}

// Every id must be 0..size-1, or `except` where that is given.
inline void check_ids(const int64_t* ids, long n, long size, const char* name, std::optional<int64_t> except = {}) {
  perform([=] {
    for (long i = 0; i < n; ++i)
      if ((ids[i] < 0 || ids[i] >= size) && ids[i] != except)
        throw py::index_error(std::string(name) + ": " + std::to_string(ids[i]) + " at position " + std::to_string(i) +
                              ", wanted 0.." + std::to_string(size - 1));
  });
}

inline void check_lengths(const int64_t* lengths, long batch, long time) {
  perform([=] {
    for (long n = 0; lengths && n < batch; ++n)
      if (lengths[n] < 0 || lengths[n] > time)
        refuse("lengths", std::to_string(lengths[n]) + " at row " + std::to_string(n) + ", wanted 0.." + std::to_string(time));
  });
}

// A new array of the arena, contents undefined.
inline py::array make(const py::dtype& dtype, const std::vector<long>& shape) {
  size_t bytes = static_cast<size_t>(dtype.itemsize());
  for (long n : shape) bytes *= static_cast<size_t>(n);
  void* block = arena_allocate(bytes);
  py::capsule owner(block, [](void* p) { arena_free(p); });
  py::array made(dtype, std::vector<py::ssize_t>(shape.begin(), shape.end()), block, owner);
  keep(made);
  return made;
}

template <class T>
py::array make(const std::vector<long>& shape) {
  return make(py::dtype::of<T>(), shape);
}

template <class T>
T* data(py::array& a) {
  return static_cast<T*>(a.mutable_data());
}

template <class T>
const Table<T>& table();
template <>
inline const Table<float>& table<float>() {
  return kernels().f32;
}
template <>
inline const Table<double>& table<double>() {
  return kernels().f64;
}

// Calls a kernel with the GIL released.
template <class Args>
void call(void (*kernel)(const Args&), const Args& args) {
  py::gil_scoped_release release;
  perform([=] { kernel(args); });
}

// Weights in panel order, made once and used many times.
struct Packed {
  std::vector<void*> blocks;  // linear: one; lstm: (ih, hh) per direction
  std::vector<long> shape;    // linear: (C, K); lstm: (I, H, R)
  bool is_double = false;
  size_t bytes = 0;

  Packed() = default;
  Packed(const Packed&) = delete;
  ~Packed() {
    for (void* block : blocks) arena_free(block);
  }
  template <class T>
  T* add(long elements) {
    void* block = arena_allocate(static_cast<size_t>(elements) * sizeof(T));
    blocks.push_back(block);
    bytes += static_cast<size_t>(elements) * sizeof(T);
    return static_cast<T*>(block);
  }
  template <class T>
  const T* panels(size_t i, const std::vector<long>& wanted) const {
    if (shape != wanted || is_double != (sizeof(T) == 8))
      refuse("packed", "made from weights of shape " + shape_text(shape) + ", wanted " + shape_text(wanted));
    keep(*this);
    return static_cast<const T*>(blocks[i]);
  }
};

// One function per file of this folder adds its ops to the module.
void bind_machine(py::module_& m);
void bind_products(py::module_& m);
void bind_quantized(py::module_& m);
void bind_softmax(py::module_& m);
void bind_elementwise(py::module_& m);
void bind_random_optim(py::module_& m);
void bind_recording(py::module_& m);

}  // namespace rheme
