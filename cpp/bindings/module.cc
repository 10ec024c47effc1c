// The extension module: its table of contents, and what concerns the machine rather than an op.
#include "../threads.h"
#include "arrays.h"

namespace rheme {
namespace {

py::array empty(const std::vector<long>& shape, const std::string& dtype, bool zero) {
  for (long n : shape)
    if (n < 0) refuse("shape", "negative size in " + shape_text(shape));
  py::array a = dtype == "float32"   ? make<float>(shape)
                : dtype == "float64" ? make<double>(shape)
                : dtype == "int64"   ? make<int64_t>(shape)
                : dtype == "uint64"  ? make<uint64_t>(shape)
                : dtype == "int32"   ? make<int32_t>(shape)
                : dtype == "uint8"
                    ? make<uint8_t>(shape)
                    : (refuse("dtype", "'" + dtype + "' is none of float32 float64 int64 uint64 int32 uint8"), py::array());
  if (zero) perform([to = a.mutable_data(), bytes = static_cast<size_t>(a.nbytes())] { std::memset(to, 0, bytes); });
  return a;
}

}  // namespace

void bind_machine(py::module_& m) {
  m.def("isa", [] { return std::string(kernels().isa); });
  m.def("available_isas", [] {
    std::vector<std::string> names;
    for (const char* const* n = available_isas(); *n; ++n) names.push_back(*n);
    return names;
  });
  m.def(
      "set_isa",
      [](const std::string& name) {
        const Kernels* k = find_kernels(name.c_str());
        if (!k) refuse("name", "ISA '" + name + "' is unknown, not built or not supported by this CPU");
        use_kernels(k);
      },
      py::kw_only(), py::arg("name"));
  m.def("num_threads", &chosen_threads);
  m.def(
      "set_num_threads",
      [](int n) {
        if (n < 1) refuse("n", std::to_string(n) + " threads, wanted at least 1");
        set_num_threads(n);
      },
      py::kw_only(), py::arg("n"));
  m.def("build_info", [] {
    py::dict info;
    info["compiler"] = __VERSION__;
    info["pybind11"] = PYBIND11_TOSTRING(PYBIND11_VERSION_MAJOR) "." PYBIND11_TOSTRING(PYBIND11_VERSION_MINOR);
    info["standard"] = std::to_string(__cplusplus);
    return info;
  });
  m.def("arena_bytes", &arena_bytes);
  m.def(
      "fma_peak",
      [](const std::string& dtype, long iterations) {
        if (dtype != "float32" && dtype != "float64") refuse("dtype", "'" + dtype + "', wanted float32 or float64");
        const auto kernel = dtype == "float32" ? kernels().f32.fma_peak : kernels().f64.fma_peak;
        py::gil_scoped_release release;
        return kernel(iterations);
      },
      py::kw_only(), py::arg("dtype"), py::arg("iterations"));
  m.def(
      "empty", [](const std::vector<long>& shape, const std::string& dtype) { return empty(shape, dtype, false); },
      py::kw_only(), py::arg("shape"), py::arg("dtype"));
  m.def(
      "zeros", [](const std::vector<long>& shape, const std::string& dtype) { return empty(shape, dtype, true); },
      py::kw_only(), py::arg("shape"), py::arg("dtype"));
  py::class_<Packed>(m, "Packed").def_property_readonly("nbytes", [](const Packed& p) { return p.bytes; });
}

}  // namespace rheme

PYBIND11_MODULE(_core, m) {
  m.doc() = "The CPU core of rheme. Its contract is _core.pyi; `rheme.ops` is the way in.";
  rheme::kernels();         // a forced ISA that can't be had fails here, at import
  rheme::forced_threads();  // as does a number of threads that is none
  rheme::bind_machine(m);
  rheme::bind_products(m);
  rheme::bind_quantized(m);
  rheme::bind_softmax(m);
  rheme::bind_elementwise(m);
  rheme::bind_random_optim(m);
  rheme::bind_recording(m);
}
