// The Python module `ragrad_ext._native`: tensors in, the step of their device, nothing else.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <mutex>

#include "cpu.h"
#include "table.h"
#ifdef RAGRAD_CUDA
#include "cuda.h"
#endif

namespace py = pybind11;

namespace ragrad {
namespace {

// Reads torch tensors through the table of C functions that their type offers.
class Reader {
 public:
  explicit Reader(py::object tensor_type) : type_(std::move(tensor_type)) {
    py::object capsule = type_.attr("__dlpack_c_exchange_api__");
    api_ = static_cast<const dlpack::ExchangeApi*>(
        PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
    if (!api_) throw py::error_already_set();
    if (api_->version.major != 1) {
      throw std::runtime_error("this torch speaks DLPack " + std::to_string(api_->version.major) +
                               ", the native backend speaks DLPack 1");
    }
  }

  dlpack::Tensor operator()(PyObject* object) const {
    if (!PyObject_TypeCheck(object, reinterpret_cast<PyTypeObject*>(type_.ptr()))) {
      throw py::type_error(std::string("expected a tensor, found ") + Py_TYPE(object)->tp_name);
    }
    dlpack::Tensor tensor;
    if (api_->tensor_from_object(object, &tensor) != 0) throw py::error_already_set();
    return tensor;
  }

  void operator()(const py::sequence& objects, Tensors& out) const {
    const auto fast = py::reinterpret_steal<py::object>(
        PySequence_Fast(objects.ptr(), "expected a list of tensors"));
    if (!fast) throw py::error_already_set();
    const auto n = size_t(PySequence_Fast_GET_SIZE(fast.ptr()));
    PyObject** items = PySequence_Fast_ITEMS(fast.ptr());
    out.resize(n);
    for (size_t l = 0; l < n; ++l) {
      if (items[l] == Py_None) {
        out[l].reset();
      } else {
        out[l] = (*this)(items[l]);
      }
    }
  }

  // The memory of a whole tensor that Python has just made for this call; null for None.
  template <class T>
  T* memory(const py::object& object) const {
    if (object.is_none()) return nullptr;
    const dlpack::Tensor tensor = (*this)(object.ptr());
    return reinterpret_cast<T*>(static_cast<char*>(tensor.data) + tensor.byte_offset);
  }

  void* stream(dlpack::Device device) const {
    void* stream = nullptr;
    if (api_->current_stream(device.type, device.id, &stream) != 0) throw py::error_already_set();
    return stream;
  }

  const py::object& type() const { return type_; }

 private:
  py::object type_;
  const dlpack::ExchangeApi* api_;
};

const Kernels& kernels_named(const std::string& name) {
  for (const Kernels* kernels : cpu::usable_kernels()) {
    if (kernels->name == name) return *kernels;
  }
  throw std::invalid_argument("this machine cannot run the kernels for \"" + name + "\"");
}

// Why the CUDA kernels cannot run on a device; empty if they can.
std::string cuda_unusable(int device) {
#ifdef RAGRAD_CUDA
  return cuda::unusable(device);
#else
  (void)device;
  return std::string("the compiled module has no CUDA kernels: ") + RAGRAD_WITHOUT_CUDA;
#endif
}

// A row table together with what each device keeps for it.
class Twins {
 public:
  Twins(py::object tensor_type, std::vector<int64_t> channels, std::vector<int64_t> axes)
      : read_(std::move(tensor_type)), table_(std::move(channels), std::move(axes)) {}

  bool take(const py::sequence& rgb, const py::sequence& ir) {
    read(rgb, ir);
    return table_.take(rgb_, ir_);
  }

  void set(const py::sequence& rgb, const py::sequence& ir) {
    read(rgb, ir);
    table_.set(rgb_, ir_);
  }

  void attach(Operand operand, const py::sequence& rgb, const py::sequence& ir) {
    read(rgb, ir);
    table_.attach(operand, rgb_, ir_);
  }

  // Bytes of zeroed device memory that set_workspace must bring before the next call; 0 if none.
  int64_t missing_workspace() const {
#ifdef RAGRAD_CUDA
    if (workspace_version_ != table_.version()) return cuda::workspace_bytes(table_);
#endif
    return 0;
  }

  void set_workspace(py::object tensor) {
    workspace_ = std::move(tensor);
    workspace_version_ = table_.version();
  }

  // two_launches: of CUDA, the plain variant that the benchmark measures the other by.
  void correct(const py::object& reliability, const py::object& dots, const py::object& cosine,
               const py::object& gap, const py::object& mask, const py::object& strength,
               bool dual, bool blend, double eps, const std::string& isa, int threads,
               bool two_launches) {
    const Correction args{{dual, blend, eps},
                          read_.memory<const float>(reliability),
                          read_.memory<const double>(dots),
                          read_.memory<float>(cosine),
                          read_.memory<float>(gap),
                          read_.memory<bool>(mask),
                          read_.memory<float>(strength)};
    if (table_.device().type == dlpack::kCPU) {
      const Kernels& kernels = kernels_named(isa);
      const Quiet quiet(*this);
      return plan_.correct(table_, args, kernels, threads);
    }
#ifdef RAGRAD_CUDA
    void* const workspace = read_.memory<void>(workspace_);
    void* const stream = read_.stream(table_.device());
    const Quiet quiet(*this);
    (two_launches ? cuda::correct_two_launches : cuda::correct)(table_, args, workspace, stream);
#else
    (void)two_launches;
    throw std::runtime_error(cuda_unusable(0));
#endif
  }

  void observe(const py::object& weight, const py::object& dots, const py::object& dot,
               const py::object& deviation, const py::object& observed, const std::string& isa,
               int threads) {
    const Observation args{read_.memory<const double>(weight), read_.memory<double>(dots),
                           read_.memory<double>(dot), read_.memory<double>(deviation),
                           read_.memory<bool>(observed)};
    if (table_.device().type == dlpack::kCPU) {
      const Kernels& kernels = kernels_named(isa);
      const Quiet quiet(*this);
      return plan_.observe(table_, args, kernels, threads);
    }
#ifdef RAGRAD_CUDA
    void* const workspace = read_.memory<void>(workspace_);
    void* const stream = read_.stream(table_.device());
    const Quiet quiet(*this);
    cuda::observe(table_, args, workspace, stream);
#else
    throw std::runtime_error(cuda_unusable(0));
#endif
  }

  py::tuple state() const { return py::make_tuple(read_.type(), table_.channels(), table_.axes()); }

 private:
  // While this lives other Python threads run, and no other call on these twins does.
  struct Quiet {
    explicit Quiet(Twins& twins) : one_at_a_time(twins.busy_) {}
    py::gil_scoped_release others_may_run;
    std::lock_guard<std::mutex> one_at_a_time;
  };

  void read(const py::sequence& rgb, const py::sequence& ir) {
    read_(rgb, rgb_);
    read_(ir, ir_);
  }

  Reader read_;
  Table table_;
  cpu::Plan plan_;
  std::mutex busy_;
  py::object workspace_;  // on a CUDA device: the memory between the blocks of a launch
  int64_t workspace_version_ = 0;  // of the table it was made for
  Tensors rgb_, ir_;  // of the latest call; kept for their memory
};

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
  for (const Kernels* kernels : cpu::usable_kernels()) names.emplace_back(kernels->name);
  return names;
}

}  // namespace

PYBIND11_MODULE(_native, m) {
  m.doc() = "The compiled core of ragrad_ext; see ragrad_ext.backends.native.";
  m.def("instruction_sets", instruction_sets, "What this machine can run, the fastest first.");
  m.def("cuda_unusable", cuda_unusable, py::arg("device"),
        "Why the CUDA kernels cannot run on a device; empty if they can.");
  py::class_<Twins>(m, "Twins", "The rows of paired tensors, remembered from call to call.")
      .def(py::init<py::object, std::vector<int64_t>, std::vector<int64_t>>(),
           py::arg("tensor_type"), py::arg("channels"), py::arg("axes"))
      .def("take", &Twins::take, py::arg("rgb"), py::arg("ir"),
           "Take gradients if only their addresses differ from those that were set; else False.")
      .def("set", &Twins::set, py::arg("rgb"), py::arg("ir"), "Take checked gradients.")
      .def("attach_weights", [](Twins& self, const py::sequence& rgb,
                                const py::sequence& ir) { self.attach(kWeight, rgb, ir); })
      .def("attach_mean", [](Twins& self, const py::sequence& rgb,
                             const py::sequence& ir) { self.attach(kMean, rgb, ir); })
      .def("missing_workspace", &Twins::missing_workspace)
      .def("set_workspace", &Twins::set_workspace)
      .def("correct", &Twins::correct)
      .def("observe", &Twins::observe)
      .def(py::pickle([](const Twins& self) { return self.state(); },
                      [](const py::tuple& state) {
                        return std::make_unique<Twins>(
                            state[0].cast<py::object>(),
                            state[1].cast<std::vector<int64_t>>(),
                            state[2].cast<std::vector<int64_t>>());
                      }));
}

}  // namespace ragrad
