// A step that is run again and again: what it computes is recorded once, and then is one call from Python in the place of many.
#include <cstring>

#include "arrays.h"

namespace rheme {
namespace {

void begin(Recording& recording) {
  if (Recording::current()) throw std::runtime_error("this thread is recording already");
  Recording::current() = &recording;
}

void end(Recording& recording) {
  if (Recording::current() == &recording) Recording::current() = nullptr;
}

void run(const Recording& recording) {
  if (Recording::current()) throw std::runtime_error("a recording is no part of another one");
  py::gil_scoped_release release;
  for (const auto& step : recording.steps) step();
}

// Copying, of arrays of any dtype and layout: what NumPy would do, in a form that can be recorded.
struct Strided {
  std::vector<py::ssize_t> shape, strides;
  size_t item;

  template <class T>
  static void elements(const char* from, char* to, py::ssize_t n, py::ssize_t stride) {
    for (py::ssize_t i = 0; i < n; ++i) reinterpret_cast<T*>(to)[i] = *reinterpret_cast<const T*>(from + i * stride);
  }

  char* copy(const char* from, char* to, size_t axis = 0) const {
    const py::ssize_t n = shape[axis], stride = strides[axis];
    if (axis + 1 < shape.size()) {
      for (py::ssize_t i = 0; i < n; ++i) to = copy(from + i * stride, to, axis + 1);
      return to;
    }
    if (stride == static_cast<py::ssize_t>(item))
      std::memcpy(to, from, static_cast<size_t>(n) * item);
    else if (item == sizeof(float))
      elements<float>(from, to, n, stride);
    else if (item == sizeof(double))
      elements<double>(from, to, n, stride);
    else
      for (py::ssize_t i = 0; i < n; ++i) std::memcpy(to + static_cast<size_t>(i) * item, from + i * stride, item);
    return to + static_cast<size_t>(n) * item;
  }
};

// Their bytes are references, which nobody would count.
void refuse_objects(const char* name, const py::array& x) {
  if (x.dtype().attr("hasobject").cast<bool>())
    throw py::type_error(std::string(name) + ": dtype " + std::string(py::str(x.dtype())) + ", wanted numbers");
}

py::array contiguous(const py::array& x) {
  refuse_objects("x", x);
  py::array y = make(x.dtype(), shape_of(x));
  Strided strided{{x.shape(), x.shape() + x.ndim()}, {x.strides(), x.strides() + x.ndim()}, static_cast<size_t>(x.itemsize())};
  if (!x.ndim()) strided.shape = strided.strides = {1};
  keep(x);
  perform(
      [=, from = static_cast<const char*>(x.data()), to = static_cast<char*>(y.mutable_data())] { strided.copy(from, to); });
  return y;
}

py::array concat(const std::vector<py::array>& arrays, long axis) {
  if (arrays.empty()) refuse("arrays", "none");
  const py::array& first = arrays[0];
  refuse_objects("arrays", first);
  std::vector<long> shape = shape_of(first);
  if (axis < 0 || axis >= first.ndim()) refuse("axis", std::to_string(axis) + ", wanted one of " + shape_text(shape));
  const size_t along = static_cast<size_t>(axis);
  size_t rows = 1, behind = static_cast<size_t>(first.itemsize());
  for (size_t i = 0; i < shape.size(); ++i)
    if (i != along) (i < along ? rows : behind) *= static_cast<size_t>(shape[i]);
  struct Part {
    const char* from;
    size_t bytes;  // of a row
  };
  std::vector<Part> parts;
  shape[along] = 0;
  for (const py::array& x : arrays) {
    std::vector<long> wanted = shape_of(first), own = shape_of(x);
    if (own.size() == wanted.size()) wanted[along] = own[along];
    if (own != wanted) refuse("arrays", "shape " + shape_text(own) + ", wanted " + shape_text(wanted));
    if (!x.dtype().equal(first.dtype())) refuse("arrays", "dtypes differ");
    if (!(x.flags() & py::array::c_style)) refuse("arrays", "not C-contiguous");
    keep(x);
    parts.push_back({static_cast<const char*>(x.data()), static_cast<size_t>(own[along]) * behind});
    shape[along] += own[along];
  }
  py::array y = make(first.dtype(), shape);
  perform([parts, rows, to = static_cast<char*>(y.mutable_data())] {
    char* next = to;
    for (size_t row = 0; row < rows; ++row)
      for (const Part& part : parts) {
        std::memcpy(next, part.from + row * part.bytes, part.bytes);
        next += part.bytes;
      }
  });
  return y;
}

}  // namespace

void bind_recording(py::module_& m) {
  using py::arg;
  py::class_<Recording>(m, "Recording").def(py::init<>()).def("begin", &begin).def("end", &end).def("run", &run);
  m.def("contiguous", &contiguous, py::kw_only(), arg("x"));
  m.def("concat", &concat, py::kw_only(), arg("arrays"), arg("axis"));
}

}  // namespace rheme
