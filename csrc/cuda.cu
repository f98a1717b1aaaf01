// Launches: what goes into which kernel, on how many blocks.
#include "cuda.h"

#include <map>
#include <mutex>
#include <stdexcept>
#include <utility>

#include "cuda_correct.cuh"
#include "cuda_observe.cuh"
#include "cuda_plan.h"

namespace ragrad::cuda {
namespace {

void check(cudaError_t error, const char* call) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // it is reported here, and must not be found by another caller's check
  throw std::runtime_error(std::string(call) + " failed: " + cudaGetErrorString(error));
}

// Makes a device the current one, for as long as it lives.
class OnDevice {
 public:
  explicit OnDevice(int device) {
    check(cudaGetDevice(&before_), "cudaGetDevice");
    if (device != before_) check(cudaSetDevice(device), "cudaSetDevice");
    changed_ = device != before_;
  }
  ~OnDevice() {
    if (changed_) cudaSetDevice(before_);  // it was current before: this cannot fail
  }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

 private:
  int before_ = 0;
  bool changed_ = false;
};

template <class Args>
using Kernel = void (*)(Args);

// Blocks of a kernel that the current device runs at a time; asked for once.
template <class Args>
uint32_t resident_blocks(Kernel<Args> kernel, int device) {
  static std::mutex mutex;
  static std::map<std::pair<int, Kernel<Args>>, uint32_t> known;
  const std::lock_guard<std::mutex> lock(mutex);
  uint32_t& blocks = known[{device, kernel}];
  if (blocks == 0) {
    int per_processor = 0, processors = 0;
    check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&per_processor, kernel, kThreads, 0),
          "cudaOccupancyMaxActiveBlocksPerMultiprocessor");
    check(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device),
          "cudaDeviceGetAttribute");
    blocks = uint32_t(std::max(1, per_processor * processors));
  }
  return blocks;
}

template <class Args>
void launch(Kernel<Args> kernel, Args& args, uint32_t blocks, void* stream) {
  const uint32_t grid = std::min(blocks, args.queue.first[args.queue.entries]);
  void* pointers[] = {&args};
  check(cudaLaunchKernel(kernel, dim3(grid), dim3(kThreads), pointers, 0,
                         static_cast<cudaStream_t>(stream)),
        "cudaLaunchKernel");
}

// Calls flush() for launches that together hold every layer that belongs to them. Layers of other
// kernels are left out, but keep their counters and sums.
template <class Args, class Belongs, class Dense, class Flush>
void in_launches(const Table& table, const Workspace& workspace, Args& args, int sums,
                 Belongs belongs, Dense dense, Flush flush) {
  const int most = std::min(Args::kLayers, limits.layers);
  double* place = workspace.sums;
  int slot = 0;
  args.layers = args.strided = 0;
  for (const Layer& layer : table.layers()) {
    const Cut cut(layer);
    if (belongs(layer)) {
      if (args.layers == most || args.strided == Args::kWalks) {
        flush();
        args.layers = args.strided = 0;
      }
      add_layer(args, layer, cut, dense(layer), slot, place);
    }
    ++slot;
    place += sums * layer.channels * cut.pieces;
  }
  if (args.layers > 0) flush();
}

template <class G>
void correct_layers(const Table& table, Type type, CorrectArgs& args, const Workspace& workspace,
                    void* stream, bool one_launch) {
  const int device = table.device().id;
  const bool given = args.out.dots != nullptr;
  const auto flush = [&] {
    for (int l = 0; l < args.layers && given; ++l) {
      Rows<2>& layer = args.layer[l];
      layer.sums = const_cast<double*>(args.out.dots) + kDots * layer.first_row;  // only read
      layer.units = layer.sum_lanes = 1;
      layer.sum_pieces = 1;
    }
    if (one_launch) {
      const Kernel<const CorrectArgs> kernel = correct_kernel<G, true>;
      const uint32_t blocks = resident_blocks(kernel, device);
      enqueue_correction(args, blocks);
      launch(kernel, args, blocks, stream);
      return;
    }
    const Kernel<const CorrectArgs> kernel = correct_kernel<G, false>;
    for (const int half : {0, kBlend}) {
      clear(args.queue);
      for (int l = 0; l < args.layers; ++l) {
        enqueue(args.queue, l | half, half ? args.layer[l].blends : args.layer[l].units);
      }
      launch(kernel, args, resident_blocks(kernel, device), stream);
    }
  };
  in_launches(
      table, workspace, args, kDots, [&](const Layer& layer) { return layer.type[0] == type; },
      [](const Layer& layer) { return layer.dense; }, flush);
}

void correct_all(const Table& table, const Correction& out, void* memory, void* stream,
                 bool one_launch) {
  if (table.layers().empty()) return;
  const OnDevice guard(table.device().id);
  const Workspace workspace(table, memory);
  CorrectArgs args;
  args.out = out;
  args.rows = table.rows();
  args.scales = workspace.scales;
  args.counters = workspace.counters;
  correct_layers<float>(table, Type::f32, args, workspace, stream, one_launch);
  correct_layers<bf16>(table, Type::bf16, args, workspace, stream, one_launch);
  correct_layers<f16>(table, Type::f16, args, workspace, stream, one_launch);
}

Type type_of_mean(const Layer& layer) {
  return layer.data[kMean] ? layer.type[kMean]
         : layer.data[kMean + 1] ? layer.type[kMean + 1]
                                 : Type::f32;
}

template <class G, class M>
void observe_layers(const Table& table, Type type, Type mean, ObserveArgs& args,
                    const Workspace& workspace, void* stream) {
  // Runs are read as G, weights too, and written as M; whatever else there is, by its own type.
  const auto dense = [&](const Layer& layer) {
    bool as_expected = layer.dense;
    for (int o = kWeight; o < kOperands; ++o) {
      as_expected &= !layer.data[o] || layer.type[o] == (o < kMean ? type : mean);
    }
    return as_expected;
  };
  in_launches(
      table, workspace, args, kRowSums,
      [&](const Layer& layer) { return layer.type[0] == type && type_of_mean(layer) == mean; },
      dense, [&] {
        const Kernel<const ObserveArgs> kernel = observe_kernel<G, M>;
        clear(args.queue);
        for (int l = 0; l < args.layers; ++l) enqueue(args.queue, l, args.layer[l].units);
        launch(kernel, args, resident_blocks(kernel, table.device().id), stream);
      });
}

std::string find_fault(int device) try {
  int devices = 0;
  check(cudaGetDeviceCount(&devices), "cudaGetDeviceCount");
  if (device >= devices) {
    return "CUDA device " + std::to_string(device) + " was asked for, and there are " +
           std::to_string(devices);
  }
  const OnDevice guard(device);
  cudaFuncAttributes attributes;  // there are some only if a compiled kernel fits the device
  check(cudaFuncGetAttributes(&attributes, correct_kernel<float, true>), "cudaFuncGetAttributes");
  return "";
} catch (const std::exception& error) {
  return error.what();
}

}  // namespace

std::string unusable(int device) try {
  static std::mutex mutex;
  static std::map<int, std::string> known;  // every call of the backend asks
  const std::lock_guard<std::mutex> lock(mutex);
  const auto [entry, is_new] = known.try_emplace(device);
  if (is_new) entry->second = find_fault(device);
  return entry->second;
} catch (const std::exception& error) {
  return error.what();
}

int64_t workspace_bytes(const Table& table) { return Workspace::bytes(table); }

void correct(const Table& table, const Correction& args, void* workspace, void* stream) {
  correct_all(table, args, workspace, stream, true);
}

void correct_two_launches(const Table& table, const Correction& args, void* workspace,
                          void* stream) {
  correct_all(table, args, workspace, stream, false);
}

void observe(const Table& table, const Observation& out, void* memory, void* stream) {
  if (table.layers().empty()) return;
  const OnDevice guard(table.device().id);
  const Workspace workspace(table, memory);
  ObserveArgs args;
  args.out = out;
  args.rows = table.rows();
  args.counters = workspace.counters;
  observe_layers<float, float>(table, Type::f32, Type::f32, args, workspace, stream);
  observe_layers<float, bf16>(table, Type::f32, Type::bf16, args, workspace, stream);
  observe_layers<bf16, float>(table, Type::bf16, Type::f32, args, workspace, stream);
  observe_layers<bf16, bf16>(table, Type::bf16, Type::bf16, args, workspace, stream);
  observe_layers<f16, float>(table, Type::f16, Type::f32, args, workspace, stream);
  observe_layers<f16, bf16>(table, Type::f16, Type::bf16, args, workspace, stream);
}

}  // namespace ragrad::cuda
