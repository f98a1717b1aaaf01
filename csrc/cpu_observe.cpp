// Observe, on the CPU: the sums of every row, and the history of Eq. 4.
#include <algorithm>
#include <cmath>

#include "cpu.h"
#include "walk.h"

namespace ragrad::cpu {

struct Plan::Observing {
  Plan& plan;
  const Table& table;
  const Observation& args;
  const Kernels& kernels;

  void operator()(const Unit& unit) {
    const Layer& layer = table.layers()[size_t(unit.layer)];
    for (int64_t i = unit.begin; i < unit.end; ++i) {
      double sums[kSums];
      observe(unit, layer, i, sums);
      if (unit.slot < 0) {
        record(layer, layer.first_row + i, sums);
      } else {
        std::copy(sums, sums + kSums, &plan.partials_[kSums * unit.slot]);
      }
    }
    if (unit.slot >= 0 &&
        plan.progress_[size_t(unit.layer)].left.fetch_sub(1, std::memory_order_acq_rel) == 1) {
      join(layer, plan.slot_of_layer_[size_t(unit.layer)]);
    }
  }

  void observe(const Unit& unit, const Layer& layer, int64_t i, double* sums) {
    const int64_t row = layer.first_row + i;
    const int type = int(layer.type[kGradient]);
    // If only one weight is read, point both operands at it; `record` drops the other's sum.
    const int rgb = layer.data[kWeight] ? kWeight : kWeight + 1;
    const int ir = layer.data[kWeight + 1] ? kWeight + 1 : kWeight;
    const int theta = layer.data[rgb] ? int(layer.type[rgb]) : kAbsent;
    const int mu = layer.data[kMean] ? int(layer.type[kMean]) : 2;
    if (theta == kAbsent && !layer.data[kMean]) {  // nothing but gradients: the faster kernel
      std::fill(sums + kGram, sums + kSums, 0.0);
      return sum_gram(kernels, layer, i, unit.first, unit.last, sums);
    }
    double lanes[kSums * kLanes] = {};
    const double w[2] = {args.step_size ? args.step_size[row] : 0.0,
                         args.step_size ? args.step_size[table.rows() + row] : 0.0};
    each_run(layer, i, unit.first, unit.last, {0, 1, 2, 3, 4, 5}, {kMean, kMean + 1},
             [&](void* const* p, int64_t n) {
               kernels.observe[type][theta][mu]({{p[0], p[1]}, {p[rgb], p[ir]}, {p[4], p[5]}}, n, w,
                                                lanes);
             });
    for (int s = 0; s < kSums; ++s) sums[s] = kernels.fold(lanes + s * kLanes);
  }

  void record(const Layer& layer, int64_t row, const double* sums) {
    std::copy(sums, sums + kGram, args.gram + kGram * row);
    for (int m = 0; m < 2; ++m) {
      const int64_t at = m * table.rows() + row;
      const bool finite = std::isfinite(sums[m]);
      args.observed[at] = finite;
      args.g_theta[at] = finite && layer.data[kWeight + m] ? sums[kGram + m] : 0.0;
      args.deviation[at] = finite ? sums[kGram + 2 + m] / double(layer.row_size) : 0.0;
    }
  }

  // The parts of split rows, in their order.
  void join(const Layer& layer, int64_t slot) {
    const int64_t parts = (layer.row_size + kPartElements - 1) / kPartElements;
    for (int64_t i = 0; i < layer.channels; ++i, slot += parts) {
      double sums[kSums] = {};
      for (int64_t part = 0; part < parts; ++part) {
        for (int s = 0; s < kSums; ++s) sums[s] += plan.partials_[kSums * (slot + part) + s];
      }
      record(layer, layer.first_row + i, sums);
    }
  }
};

void Plan::observe(const Table& table, const Observation& args, const Kernels& kernels,
                   int threads) {
  prepare(table);
  Observing work{*this, table, args, kernels};
  run(observing_, threads, bytes_, [&](const Unit& unit) { work(unit); });
}

}  // namespace ragrad::cpu
