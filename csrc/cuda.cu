// Launches: what goes into which kernel, on how many blocks.
#include "cuda.h"

#include <map>
#include <mutex>
#include <stdexcept>
#include <utility>

#include "cuda_apply.cuh"
#include "cuda_decide_and_apply.cuh"
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
// kernels are left out, but keep their counters and sums: `n` of them for each piece, at `place`.
template <class Args, class Belongs, class Dense, class Flush>
void in_launches(const Table& table, Args& args, double* place, int n, Belongs belongs, Dense dense,
                 Flush flush) {
  const int most = std::min(Args::kLayers, limits.layers);
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
    place += n * layer.channels * cut.pieces;
  }
  if (args.layers > 0) flush();
}

// Those of layers whose gradients are of one type, where nothing but these is read.
template <class Args, class Flush>
void in_launches_of(Type type, const Table& table, Args& args, double* place, int n, Flush flush) {
  in_launches(
      table, args, place, n, [&](const Layer& layer) { return layer.type[0] == type; },
      [](const Layer& layer) { return layer.dense; }, flush);
}

template <class G>
void decide_and_apply_layers(const Table& table, Type type, DecideAndApplyArgs& args,
                             const Workspace& workspace, void* stream) {
  in_launches_of(type, table, args, workspace.sums, kGram, [&] {
    for (int l = 0; l < args.layers && args.out.gram; ++l) {
      LayerArgs<2>& layer = args.layer[l];
      layer.sums = const_cast<double*>(args.out.gram) + kGram * layer.first_row;  // only read
      layer.units = layer.sum_lanes = 1;
      layer.sum_pieces = 1;
    }
    const Kernel<const DecideAndApplyArgs> kernel = decide_and_apply_kernel<G>;
    const uint32_t blocks = resident_blocks(kernel, table.device().id);
    enqueue_decide_and_apply(args, blocks);
    launch(kernel, args, blocks, stream);
  });
}

template <class G>
void apply_layers(const Table& table, Type type, ApplyArgs& args, void* stream) {
  in_launches_of(type, table, args, nullptr, 0, [&] {
    const Kernel<const ApplyArgs> kernel = apply_kernel<G>;
    enqueue_units(args);
    launch(kernel, args, resident_blocks(kernel, table.device().id), stream);
  });
}

Type type_of_mean(const Layer& layer) {
  return layer.data[kMean]       ? layer.type[kMean]
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
      table, args, workspace.sums, kRowSums,
      [&](const Layer& layer) { return layer.type[0] == type && type_of_mean(layer) == mean; },
      dense,
      [&] {
        const Kernel<const ObserveArgs> kernel = observe_kernel<G, M>;
        enqueue_units(args);
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
  check(cudaFuncGetAttributes(&attributes, apply_kernel<float>), "cudaFuncGetAttributes");
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

void apply(const Table& table, const Mixing& in, void*, void* stream) {
  if (table.layers().empty()) return;
  const OnDevice guard(table.device().id);
  ApplyArgs args;
  args.in = in;
  apply_layers<float>(table, Type::f32, args, stream);
  apply_layers<bf16>(table, Type::bf16, args, stream);
  apply_layers<f16>(table, Type::f16, args, stream);
}

void decide_and_apply(const Table& table, const Correction& out, void* memory, void* stream) {
  if (table.layers().empty()) return;
  const OnDevice guard(table.device().id);
  const Workspace workspace(table, memory);
  DecideAndApplyArgs args;
  args.out = out;
  args.rows = table.rows();
  args.mix = workspace.mix;
  args.counters = workspace.counters;
  decide_and_apply_layers<float>(table, Type::f32, args, workspace, stream);
  decide_and_apply_layers<bf16>(table, Type::bf16, args, workspace, stream);
  decide_and_apply_layers<f16>(table, Type::f16, args, workspace, stream);
}

}  // namespace ragrad::cuda
