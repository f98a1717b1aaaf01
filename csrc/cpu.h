// The step on the CPU.
#pragma once

#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "rows.h"
#include "step.h"

namespace ragrad::cpu {

// The kernels that this machine can run, the fastest first.
std::vector<const Kernels*> usable_kernels();

// A table cut into units of work, and the memory of one call. Calls on one plan must not overlap.
class Plan {
 public:
  void correct(const Table& table, const Correction& args, const Kernels& kernels, int threads);
  void observe(const Table& table, const Observation& args, const Kernels& kernels, int threads);

 private:
  // Some whole rows of a layer, or one part of a row that is split.
  struct Unit {
    int layer;           // index into table.layers()
    bool blends;         // else it reduces
    int64_t begin, end;  // rows
    int64_t first, last;  // elements of each row
    int64_t slot;         // where the sums of a part are kept; -1 for whole rows
  };

  // How far a layer has come in this call.
  struct Progress {
    std::atomic<int64_t> left;     // units that have not been reduced yet
    std::atomic<bool> settled;     // Eq. 6 is decided: blending may start
  };

  struct Correcting;
  struct Observing;

  void prepare(const Table& table);
  template <class Work>
  void run(const std::vector<Unit>& units, int threads, int64_t bytes, Work work);

  int64_t version_ = 0;  // of the table that the units belong to
  int64_t bytes_ = 0;    // of all gradients
  std::vector<Unit> reducing_;  // every row once
  std::vector<Unit> queue_;     // the same, and behind each layer's units those that blend it
  std::vector<int64_t> units_of_layer_, slot_of_layer_;
  std::unique_ptr<Progress[]> progress_;
  std::vector<double> dots_;      // (rows, 3)
  std::vector<double> partials_;  // (slots, 7): the sums of parts of split rows
};

}  // namespace ragrad::cpu
