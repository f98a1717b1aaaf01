// The CUDA backend on host memory, for ctypes: see tests/backends/test_cuda_*.py.
#include <cstdio>
#include <exception>

#include "../../../csrc/cuda.cu"
#include "../../../csrc/table.cpp"
#include "cuda_shim.h"

namespace ragrad {

Tensors side(const dlpack::Tensor* tensors, int n) {
  Tensors out(n);
  for (int l = 0; l < n; ++l) {
    if (tensors[l].data) out[l] = tensors[l];
  }
  return out;
}

template <class Call>
int launches(unsigned seed, Call call) {
  shim::seed = seed;
  const int before = shim::launches;
  call();
  return shim::launches - before;
}

extern "C" {

struct Case {
  int layers;
  const int64_t *channels, *axes;
  const dlpack::Tensor* operands[kOperands];  // no data: absent
};

// How small the pieces are.
struct Sizes {
  int64_t piece_bytes, unit_bytes, row_pieces;
  int layers;  // of a launch
};

struct Run {
  Table table;
  std::vector<char> workspace;  // as if in device memory, zeroed once
};

Run* ragrad_open(const Case* c, const Sizes* sizes) try {
  auto* run = new Run{Table({c->channels, c->channels + c->layers}, {c->axes, c->axes + c->layers}),
                      {}};
  Tensors operands[kOperands];
  for (int o = 0; o < kOperands; ++o) operands[o] = side(c->operands[o], c->layers);
  run->table.set(operands[0], operands[1]);
  run->table.attach(kWeight, operands[2], operands[3]);
  run->table.attach(kMean, operands[4], operands[5]);
  cuda::limits = {sizes->piece_bytes, sizes->unit_bytes, sizes->row_pieces, sizes->layers};
  run->workspace.resize(size_t(cuda::workspace_bytes(run->table)));
  return run;
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return nullptr;
}

void ragrad_close(Run* run) { delete run; }

// These return the number of launches. `seed` varies the order in which blocks run.
int ragrad_observe(Run* run, unsigned seed, const Observation* args) {
  return launches(seed, [&] { cuda::observe(run->table, *args, run->workspace.data(), nullptr); });
}

int ragrad_apply(Run* run, unsigned seed, const Mixing* args) {
  return launches(seed, [&] { cuda::apply(run->table, *args, nullptr, nullptr); });
}

int ragrad_decide_and_apply(Run* run, unsigned seed, const Correction* args, int slow_double) {
  shim::slow_double = slow_double;
  return launches(
      seed, [&] { cuda::decide_and_apply(run->table, *args, run->workspace.data(), nullptr); });
}

// Whether the counters are as a launch must find them, and the device as it was before.
int ragrad_ready(const Run* run) {
  const size_t counters = 4 * (2 + 2 * run->table.layers().size());
  return shim::current_device == 0 &&
         std::all_of(run->workspace.begin(), run->workspace.begin() + counters,
                     [](char byte) { return byte == 0; });
}

}  // extern "C"
}  // namespace ragrad
