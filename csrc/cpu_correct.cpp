// Decide and apply, on the CPU: the matrix of every row, and the rewrite of the rows that change.
#include <cmath>
#include <limits>
#include <thread>

#include "cpu.h"
#include "walk.h"

namespace ragrad::cpu {

namespace {

// [g_rgb; g_ir] <- M [g_rgb; g_ir] for elements first to last of channel i, m = M row by row.
void mix_row(const Kernels& kernels, const Layer& layer, int64_t i, int64_t first, int64_t last,
             const double* m) {
  const bool rgb = m[0] != 1 || m[1] != 0, ir = m[2] != 0 || m[3] != 1;  // what changes
  const int type = int(layer.type[kGradient]);
  if (rgb && ir) {
    each_run(layer, i, first, last, {0, 1}, {0, 1},
             [&](void* const* g, int64_t n) { kernels.mix_both[type](g[0], g[1], n, m); });
  } else if (rgb) {
    each_run(layer, i, first, last, {0, 1}, {0},
             [&](void* const* g, int64_t n) { kernels.mix_one[type](g[0], g[1], n, m[0], m[1]); });
  } else if (ir) {
    each_run(layer, i, first, last, {0, 1}, {1},
             [&](void* const* g, int64_t n) { kernels.mix_one[type](g[1], g[0], n, m[3], m[2]); });
  }
}

}  // namespace

void Plan::apply(const Table& table, const Mixing& args, const Kernels& kernels, int threads) {
  prepare(table);
  run(observing_, threads, bytes_, [&](const Unit& unit) {
    const Layer& layer = table.layers()[size_t(unit.layer)];
    for (int64_t i = unit.begin; i < unit.end; ++i) {
      mix_row(kernels, layer, i, unit.first, unit.last, args.mix + kMix * (layer.first_row + i));
    }
  });
}

struct Plan::Correcting {
  Plan& plan;
  const Table& table;
  const Correction& args;
  const Kernels& kernels;
  const double* gram;  // given, or the plan's own

  void operator()(const Unit& unit) {
    const Layer& layer = table.layers()[size_t(unit.layer)];
    Progress& progress = plan.progress_[size_t(unit.layer)];
    if (unit.applies) {
      while (!progress.decided.load(std::memory_order_acquire)) std::this_thread::yield();
      if (!progress.changes) return;
      for (int64_t i = unit.begin; i < unit.end; ++i) {
        mix_row(kernels, layer, i, unit.first, unit.last, mix(layer.first_row + i));
      }
      return;
    }
    observe(unit, layer);
    if (progress.left.fetch_sub(1, std::memory_order_acq_rel) == 1) {
      join(layer, plan.slot_of_layer_[size_t(unit.layer)]);
      progress.changes = decide(layer);
      progress.decided.store(true, std::memory_order_release);
    }
  }

  double* mix(int64_t row) { return &plan.mix_[size_t(kMix * row)]; }

  float reliability(int m, int64_t row) const { return args.reliability[m * table.rows() + row]; }

  double gap(int64_t row) const {  // Eq. 6
    return std::abs(double(reliability(0, row)) - double(reliability(1, row)));
  }

  void observe(const Unit& unit, const Layer& layer) {
    for (int64_t i = unit.begin; i < unit.end; ++i) {
      const int64_t row = layer.first_row + i;
      if (!args.gram) {
        sum_gram(kernels, layer, i, unit.first, unit.last,
                 unit.slot < 0 ? &plan.gram_[kGram * row] : &plan.partials_[kSums * unit.slot]);
      }
      if (unit.slot < 0) record(row);
    }
  }

  // The parts of split rows, in their order.
  void join(const Layer& layer, int64_t slot) {
    if (slot < 0) return;
    const int64_t parts = (layer.row_size + kPartElements - 1) / kPartElements;
    for (int64_t i = 0; i < layer.channels; ++i, slot += parts) {
      const int64_t row = layer.first_row + i;
      for (int s = 0; s < kGram && !args.gram; ++s) {
        double sum = 0;
        for (int64_t part = 0; part < parts; ++part) {
          sum += plan.partials_[kSums * (slot + part) + s];
        }
        plan.gram_[kGram * row + s] = sum;
      }
      record(row);
    }
  }

  void record(int64_t row) const {
    const double* g = gram + kGram * row;
    const double norms = std::sqrt(g[0]) * std::sqrt(g[1]);
    args.cosine[row] = norms == 0 ? 0.0f : float(g[2] / norms);
    args.gap[row] = float(gap(row));
  }

  // Eq. 6 for one layer once all its rows are summed, and the matrices of its rows. Whether any row
  // changes; if none does, there are no matrices.
  bool decide(const Layer& layer) {
    const int64_t begin = layer.first_row, end = begin + layer.channels;
    bool finite = true;
    int64_t negatives = 0;
    double cosines = 0, gaps = 0;
    for (int64_t row = begin; row < end; ++row) {
      finite = finite && std::isfinite(gram[kGram * row]) && std::isfinite(gram[kGram * row + 1]);
      const double cosine = args.cosine[row];
      negatives += cosine < 0;
      cosines += cosine < 0 ? cosine : 0.0;
      gaps += gap(row);
    }
    const double mean_cosine = cosines / double(negatives);  // nan without any: none is below
    const double mean_gap = gaps / double(layer.channels);
    bool conflicts = false;
    for (int64_t row = begin; row < end; ++row) {
      const double cosine = args.cosine[row];
      const bool conflict = args.rule.dual ? cosine < mean_cosine && gap(row) > mean_gap  // Eq. 6
                                           : cosine < 0;
      args.mask[row] = finite && conflict;
      args.strength[row] = args.mask[row] ? float(strength(row)) : 0.0f;
      conflicts = conflicts || args.mask[row];
      if (!finite) args.cosine[row] = std::numeric_limits<float>::quiet_NaN();
    }
    for (int64_t row = begin; conflicts && row < end; ++row) decide_row(row);
    return conflicts;
  }

  // M of one row: the identity, but for the weak row of a conflict.
  void decide_row(int64_t row) {
    double* m = mix(row);
    m[0] = m[3] = 1;
    m[1] = m[2] = 0;
    if (!args.mask[row]) return;
    const int strong = reliability(0, row) >= reliability(1, row) ? 0 : 1;  // Eq. 7
    const int weak = 1 - strong;
    const double* g = gram + kGram * row;
    const double lambda = strength(row);
    const double p = 1 - lambda;
    m[2 * weak + weak] = p;
    m[2 * weak + strong] = lambda - p * g[2] / (g[strong] + args.rule.eps);  // Eq. 8, 9
  }

  double strength(int64_t row) const {  // Eq. 10
    if (!args.rule.blend) return 0;
    const double total = double(reliability(0, row)) + double(reliability(1, row));
    return 1 / (1 + std::exp(-gap(row) / (total + args.rule.eps)));
  }
};

void Plan::decide_and_apply(const Table& table, const Correction& args, const Kernels& kernels,
                            int threads) {
  prepare(table);
  Correcting work{*this, table, args, kernels, args.gram ? args.gram : gram_.data()};
  // With a Gram matrix that is given, only changed rows are read: a quarter of all, or fewer.
  const int64_t bytes = args.gram ? bytes_ / 4 : bytes_;
  run(queue_, threads, bytes, [&](const Unit& unit) { work(unit); });
}

}  // namespace ragrad::cpu
