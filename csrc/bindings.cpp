// The Python module `ragrad_ext._native`: tensors in, the step of their device, nothing else.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <mutex>
#include <type_traits>

#include "cpu.h"
#include "reader.h"
#ifdef RAGRAD_CUDA
#include "cuda.h"
#endif

namespace py = pybind11;

namespace ragrad {
namespace {

#ifdef RAGRAD_CUDA
#define RAGRAD_ON_CUDA(verb) &cuda::verb
#else
#define RAGRAD_ON_CUDA(verb) nullptr
#endif

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
class RowTable {
 public:
  RowTable(py::object tensor_type, std::vector<int64_t> channels, std::vector<int64_t> axes)
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

  void observe(const py::object& step_size, const py::object& gram, const py::object& g_theta,
               const py::object& deviation, const py::object& observed,
               const std::string& instruction_set, int threads) {
    const int64_t rows = table_.rows();
    const Observation args{read_.memory_or_null<const double>(step_size, "step_size", 2 * rows),
                           read_.memory<double>(gram, "gram", 3 * rows),
                           read_.memory<double>(g_theta, "g_theta", 2 * rows),
                           read_.memory<double>(deviation, "deviation", 2 * rows),
                           read_.memory<bool>(observed, "observed", 2 * rows)};
    run(args, instruction_set, threads, &cpu::Plan::observe, RAGRAD_ON_CUDA(observe));
  }

  void apply(const py::object& mix, const std::string& instruction_set, int threads) {
    const Mixing args{read_.memory<const double>(mix, "mix", 4 * table_.rows())};
    run(args, instruction_set, threads, &cpu::Plan::apply, RAGRAD_ON_CUDA(apply));
  }

  void decide_and_apply(const py::object& reliability, const py::object& gram,
                        const py::object& cosine, const py::object& gap, const py::object& mask,
                        const py::object& strength, bool dual, bool blend, double eps,
                        const std::string& instruction_set, int threads) {
    const int64_t rows = table_.rows();
    const Correction args{{dual, blend, eps},
                          read_.memory<const float>(reliability, "reliability", 2 * rows),
                          read_.memory_or_null<const double>(gram, "gram", 3 * rows),
                          read_.memory<float>(cosine, "cosine", rows),
                          read_.memory<float>(gap, "gap", rows),
                          read_.memory<bool>(mask, "mask", rows),
                          read_.memory<float>(strength, "strength", rows)};
    run(args, instruction_set, threads, &cpu::Plan::decide_and_apply,
        RAGRAD_ON_CUDA(decide_and_apply));
  }

  py::tuple state() const { return py::make_tuple(read_.type(), table_.channels(), table_.axes()); }

 private:
  // While this exists, other Python threads run, and no other call on these twins does.
  struct WithoutTheGil {
    explicit WithoutTheGil(RowTable& twins) : one_at_a_time(twins.busy_) {}
    py::gil_scoped_release others_may_run;
    std::lock_guard<std::mutex> one_at_a_time;
  };

  // One verb on the device of the gradients.
  template <class Args>
  void run(const Args& args, const std::string& instruction_set, int threads,
           void (cpu::Plan::*on_cpu)(const Table&, const Args&, const Kernels&, int),
           std::common_type_t<void (*)(const Table&, const Args&, void*, void*)> on_cuda) {
    if (table_.device().type == dlpack::kCPU) {
      const Kernels& kernels = kernels_named(instruction_set);
      const WithoutTheGil section(*this);
      return (plan_.*on_cpu)(table_, args, kernels, threads);
    }
    if (!on_cuda) throw std::runtime_error(cuda_unusable(0));
    if (workspace_.is_none() || missing_workspace() > 0) {
      throw std::invalid_argument("set_workspace has not been called for these gradients");
    }
    const dlpack::Tensor memory = read_(workspace_.ptr());
    void* const workspace = static_cast<char*>(memory.data) + memory.byte_offset;
    void* const stream = read_.stream(table_.device());
    const WithoutTheGil section(*this);
    on_cuda(table_, args, workspace, stream);
  }

  void read(const py::sequence& rgb, const py::sequence& ir) {
    read_(rgb, rgb_);
    read_(ir, ir_);
  }

  Reader read_;
  Table table_;
  cpu::Plan plan_;
  std::mutex busy_;
  py::object workspace_ =
      py::none();                  // on a CUDA device: the memory between the blocks of a launch
  int64_t workspace_version_ = 0;  // of the table it was made for
  Tensors rgb_, ir_;               // of the latest call; kept for their memory
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
  py::class_<RowTable>(m, "RowTable", "The rows of paired tensors, remembered from call to call.")
      .def(py::init<py::object, std::vector<int64_t>, std::vector<int64_t>>(),
           py::arg("tensor_type"), py::arg("channels"), py::arg("axes"))
      .def("take", &RowTable::take, py::arg("rgb"), py::arg("ir"),
           "Take gradients if only their addresses differ from those that were set; else False.")
      .def("set", &RowTable::set, py::arg("rgb"), py::arg("ir"), "Take checked gradients.")
      .def(
          "attach_weights",
          [](RowTable& self, const py::sequence& rgb, const py::sequence& ir) {
            self.attach(kWeight, rgb, ir);
          },
          py::arg("rgb"), py::arg("ir"))
      .def(
          "attach_mean",
          [](RowTable& self, const py::sequence& rgb, const py::sequence& ir) {
            self.attach(kMean, rgb, ir);
          },
          py::arg("rgb"), py::arg("ir"))
      .def("missing_workspace", &RowTable::missing_workspace)
      .def("set_workspace", &RowTable::set_workspace, py::arg("memory"))
      .def("observe", &RowTable::observe, py::kw_only(), py::arg("step_size"), py::arg("gram"),
           py::arg("g_theta"), py::arg("deviation"), py::arg("observed"),
           py::arg("instruction_set"), py::arg("threads"))
      .def("apply", &RowTable::apply, py::kw_only(), py::arg("mix"), py::arg("instruction_set"),
           py::arg("threads"))
      .def("decide_and_apply", &RowTable::decide_and_apply, py::kw_only(), py::arg("reliability"),
           py::arg("gram"), py::arg("cosine"), py::arg("gap"), py::arg("mask"), py::arg("strength"),
           py::arg("dual"), py::arg("blend"), py::arg("eps"), py::arg("instruction_set"),
           py::arg("threads"))
      .def(py::pickle([](const RowTable& self) { return self.state(); },
                      [](const py::tuple& state) {
                        return std::make_unique<RowTable>(state[0].cast<py::object>(),
                                                          state[1].cast<std::vector<int64_t>>(),
                                                          state[2].cast<std::vector<int64_t>>());
                      }));
}

}  // namespace ragrad
