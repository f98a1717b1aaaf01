// The verbs of a correction on the CPU.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <vector>

#include "rows.h"
#include "step.h"

namespace ragrad::cpu {

constexpr int64_t kPartElements = 1 << 18;  // rows longer than this are split
constexpr int kMix = 4;                     // entries of the 2x2 matrix of a row

// The kernels that this machine can run, the fastest first.
std::vector<const Kernels*> usable_kernels();

// A table cut into units of work, and the memory of one call. Calls on one plan must not overlap.
class Plan {
 public:
  // cpu_observe.cpp
  void observe(const Table& table, const Observation& args, const Kernels& kernels, int threads);
  // cpu_correct.cpp
  void apply(const Table& table, const Mixing& args, const Kernels& kernels, int threads);
  void decide_and_apply(const Table& table, const Correction& args, const Kernels& kernels,
                        int threads);

 private:
  // Some whole rows of a layer, or one part of a row that is split.
  struct Unit {
    int layer;            // index into table.layers()
    bool applies;         // else it observes
    int64_t begin, end;   // rows
    int64_t first, last;  // elements of each row
    int64_t slot;         // where the sums of a part are kept; -1 for whole rows
  };

  // How far a layer has come in this call.
  struct Progress {
    std::atomic<int64_t> left;  // units that have not been observed yet
    std::atomic<bool> decided;  // whether any row changes is known, and the matrices if so
    bool changes;
  };

  struct Correcting;
  struct Observing;

  void prepare(const Table& table);
  void run(const std::vector<Unit>& units, int threads, int64_t bytes,
           const std::function<void(const Unit&)>& work);

  int64_t version_ = 0;          // of the table that the units belong to
  int64_t bytes_ = 0;            // of all gradients
  std::vector<Unit> observing_;  // every row once
  std::vector<Unit> queue_;      // the same, and after each layer's units those that apply
  std::vector<int64_t> units_of_layer_, slot_of_layer_;
  std::unique_ptr<Progress[]> progress_;
  std::vector<double> gram_;      // (rows, 3)
  std::vector<double> mix_;       // (rows, 2, 2)
  std::vector<double> partials_;  // (slots, 7): the sums of parts of split rows
};

}  // namespace ragrad::cpu
