// How the work is shared out.
//
// A layer's conflicts are known only when all its rows have been reduced (Eq. 6), so its rows are
// walked twice: reduced, then, the conflict rows alone, blended. Both are units in one queue, and
// threads take the next unit by ticket. The thread that reduces a layer's last unit settles Eq. 6.
// The units that blend a layer stand a little behind the last one that reduces it, so that hardly
// any thread waits for it, while its rows are still in the cache. A thread only ever waits for
// units with lower tickets, which running threads hold: it cannot wait for ever.
#include "cpu.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <thread>

#include "team.h"

namespace ragrad::cpu {

namespace {

constexpr int64_t kUnitElements = 1 << 15;   // a side: enough to outweigh a ticket many times
constexpr int64_t kPartElements = 1 << 18;   // rows longer than this are split
constexpr int64_t kBytesPerThread = 1 << 20;  // less than this is not worth a thread of its own
constexpr int64_t kLag = 8;                  // units between the end of a layer and its blending
constexpr int64_t kTile = 1024;              // elements of strided rows that are packed at a time

char* row_of(const Layer& layer, int operand, int64_t row) {
  return static_cast<char*>(layer.data[operand]) +
         row * layer.channel_stride[operand] * bytes_of(layer.type[operand]);
}

// Copies elements first to first + n of a strided row into a buffer, or back.
template <class Word, bool kBack>
void copy(const Layer& layer, int operand, int64_t row, int64_t first, int64_t n, void* buffer) {
  const int inner = layer.ndim - 1;
  const int64_t* stride = layer.stride[operand];
  auto* base = reinterpret_cast<Word*>(row_of(layer, operand, row));
  auto* packed = static_cast<Word*>(buffer);
  int64_t index[kMaxDims];
  for (int d = inner; d >= 0; first /= layer.size[d--]) index[d] = first % layer.size[d];
  while (n > 0) {
    Word* p = base;
    for (int d = 0; d <= inner; ++d) p += index[d] * stride[d];
    const int64_t run = std::min(n, layer.size[inner] - index[inner]);
    for (int64_t k = 0; k < run; ++k) {
      if constexpr (kBack) {
        p[k * stride[inner]] = packed[k];
      } else {
        packed[k] = p[k * stride[inner]];
      }
    }
    packed += run;
    n -= run;
    index[inner] += run;
    for (int d = inner; d > 0 && index[d] == layer.size[d]; --d) {
      index[d] = 0;
      ++index[d - 1];
    }
  }
}

template <bool kBack>
void copy(const Layer& layer, int operand, int64_t row, int64_t first, int64_t n, void* buffer) {
  switch (bytes_of(layer.type[operand])) {
    case 2: return copy<uint16_t, kBack>(layer, operand, row, first, n, buffer);
    case 4: return copy<uint32_t, kBack>(layer, operand, row, first, n, buffer);
    default: return copy<uint64_t, kBack>(layer, operand, row, first, n, buffer);
  }
}

// Calls body(pointers, n) for run after run of the elements first to last of one row, all operands
// of a run being consecutive elements. Strided rows pass through buffers. Runs start at multiples
// of 16 elements, so that sums keep their lanes.
template <class Body>
void each_run(const Layer& layer, int64_t row, int64_t first, int64_t last,
              std::initializer_list<int> reads, std::initializer_list<int> writes, Body body) {
  void* p[kOperands] = {};
  if (layer.dense) {
    for (int o : reads) {
      if (layer.data[o]) p[o] = row_of(layer, o, row) + first * bytes_of(layer.type[o]);
    }
    return body(p, last - first);
  }
  alignas(64) uint64_t buffer[kOperands][kTile];
  for (int64_t at = first; at < last; at += kTile) {
    const int64_t n = std::min(kTile, last - at);
    for (int o : reads) {
      if (!layer.data[o]) continue;
      p[o] = buffer[o];
      copy<false>(layer, o, row, at, n, buffer[o]);
    }
    body(p, n);
    for (int o : writes) {
      if (layer.data[o]) copy<true>(layer, o, row, at, n, buffer[o]);
    }
  }
}

}  // namespace

std::vector<const Kernels*> usable_kernels() {
  std::vector<const Kernels*> usable;
#ifdef __x86_64__
  // every machine with AVX2 has these
  const bool fma = __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  if (fma && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    usable.push_back(&kernels_avx512);
  }
  if (fma && __builtin_cpu_supports("avx2")) usable.push_back(&kernels_avx2);
#endif
  usable.push_back(&kernels_baseline);
  return usable;
}

void Plan::prepare(const Table& table) {
  if (version_ == table.version()) return;
  const auto& layers = table.layers();
  reducing_.clear();
  queue_.clear();
  units_of_layer_.clear();
  slot_of_layer_.clear();
  bytes_ = 0;
  int64_t slots = 0;
  std::vector<std::pair<size_t, std::vector<Unit>>> waiting;  // units that blend, and from when
  const auto release = [&](size_t reduced) {
    while (!waiting.empty() && waiting.front().first <= reduced) {
      // Backwards: the rows that were reduced last are the likeliest to be in the cache still.
      auto& units = waiting.front().second;
      queue_.insert(queue_.end(), units.rbegin(), units.rend());
      waiting.erase(waiting.begin());
    }
  };
  for (size_t k = 0; k < layers.size(); ++k) {
    const Layer& layer = layers[k];
    const bool split = layer.row_size > kPartElements;
    bytes_ += 2 * layer.channels * layer.row_size * bytes_of(layer.type[kGradient]);
    slot_of_layer_.push_back(split ? slots : -1);
    std::vector<Unit> units;
    if (split) {
      for (int64_t row = 0; row < layer.channels; ++row) {
        for (int64_t at = 0; at < layer.row_size; at += kPartElements) {
          const int64_t last = std::min(at + kPartElements, layer.row_size);
          units.push_back({int(k), false, row, row + 1, at, last, slots++});
        }
      }
    } else {
      const int64_t step = std::max<int64_t>(1, kUnitElements / layer.row_size);
      for (int64_t row = 0; row < layer.channels; row += step) {
        const int64_t end = std::min(row + step, layer.channels);
        units.push_back({int(k), false, row, end, 0, layer.row_size, -1});
      }
    }
    units_of_layer_.push_back(int64_t(units.size()));
    for (const Unit& unit : units) {
      reducing_.push_back(unit);
      queue_.push_back(unit);
      release(reducing_.size());
    }
    for (Unit& unit : units) unit.blends = true;
    waiting.emplace_back(reducing_.size() + kLag, std::move(units));
  }
  release(std::numeric_limits<size_t>::max());
  progress_ = std::make_unique<Progress[]>(layers.size());
  dots_.resize(size_t(kDots * table.rows()));
  partials_.resize(size_t(kSums * slots));
  version_ = table.version();
}

template <class Work>
void Plan::run(const std::vector<Unit>& units, int threads, int64_t bytes, Work work) {
  for (size_t k = 0; k < units_of_layer_.size(); ++k) {
    progress_[k].left.store(units_of_layer_[k], std::memory_order_relaxed);
    progress_[k].settled.store(false, std::memory_order_relaxed);
  }
  std::atomic<size_t> ticket{0};
  auto loop = [&] {
    for (size_t t; (t = ticket.fetch_add(1, std::memory_order_relaxed)) < units.size();) {
      work(units[t]);
    }
  };
  // However many threads there are, they take all the tickets.
  const int useful = int(std::min<int64_t>(threads, bytes / kBytesPerThread));
  on_threads(useful, [](void* data) { (*static_cast<decltype(loop)*>(data))(); }, &loop);
}

struct Plan::Correcting {
  Plan& plan;
  const Table& table;
  const Correction& args;
  const Kernels& kernels;
  double* dots;

  void operator()(const Unit& unit) {
    const Layer& layer = table.layers()[size_t(unit.layer)];
    Progress& progress = plan.progress_[size_t(unit.layer)];
    if (unit.blends) {
      while (!progress.settled.load(std::memory_order_acquire)) std::this_thread::yield();
      blend(unit, layer);
      return;
    }
    reduce(unit, layer);
    if (progress.left.fetch_sub(1, std::memory_order_acq_rel) == 1) {
      settle(layer, plan.slot_of_layer_[size_t(unit.layer)]);
      progress.settled.store(true, std::memory_order_release);
    }
  }

  float reliability(int m, int64_t row) const { return args.reliability[m * table.rows() + row]; }

  double gap(int64_t row) const {  // Eq. 6
    return std::abs(double(reliability(0, row)) - double(reliability(1, row)));
  }

  void reduce(const Unit& unit, const Layer& layer) {
    for (int64_t i = unit.begin; i < unit.end; ++i) {
      const int64_t row = layer.first_row + i;
      double* sums = unit.slot < 0 ? dots + kDots * row : &plan.partials_[kSums * unit.slot];
      if (!args.dots) sum_dots(unit, layer, i, sums);
      if (unit.slot < 0) record(row);
    }
  }

  void sum_dots(const Unit& unit, const Layer& layer, int64_t i, double* sums) const {
    const int type = int(layer.type[kGradient]);
    if (layer.dense) {
      const int64_t at = unit.first * bytes_of(layer.type[kGradient]);
      return kernels.dots[type](row_of(layer, kGradient, i) + at,
                                row_of(layer, kGradient + 1, i) + at, unit.last - unit.first, sums);
    }
    double lanes[kDots * kLanes] = {};
    each_run(layer, i, unit.first, unit.last, {kGradient, kGradient + 1}, {},
             [&](void* const* p, int64_t n) { kernels.add_run[type](p[0], p[1], n, lanes); });
    for (int s = 0; s < kDots; ++s) sums[s] = kernels.fold(lanes + s * kLanes);
  }

  void record(int64_t row) {
    const double* d = dots + kDots * row;
    const double norms = std::sqrt(d[0]) * std::sqrt(d[1]);
    args.cosine[row] = norms == 0 ? 0.0f : float(d[2] / norms);
    args.gap[row] = float(gap(row));
  }

  // Eq. 6 for one layer, once all its rows are reduced.
  void settle(const Layer& layer, int64_t slot) {
    const int64_t begin = layer.first_row, end = begin + layer.channels;
    if (slot >= 0) {
      const int64_t parts = (layer.row_size + kPartElements - 1) / kPartElements;
      for (int64_t row = begin; row < end; ++row, slot += parts) {
        for (int s = 0; s < kDots && !args.dots; ++s) {
          double sum = 0;
          for (int64_t part = 0; part < parts; ++part) {
            sum += plan.partials_[kSums * (slot + part) + s];
          }
          dots[kDots * row + s] = sum;
        }
        record(row);
      }
    }
    bool finite = true;
    int64_t negatives = 0;
    double cosines = 0, gaps = 0;
    for (int64_t row = begin; row < end; ++row) {
      finite = finite && std::isfinite(dots[kDots * row]) && std::isfinite(dots[kDots * row + 1]);
      const double cosine = args.cosine[row];
      negatives += cosine < 0;
      cosines += cosine < 0 ? cosine : 0.0;
      gaps += gap(row);
    }
    const double mean_cosine = cosines / double(negatives);  // nan without any: none lies below
    const double mean_gap = gaps / double(layer.channels);
    for (int64_t row = begin; row < end; ++row) {
      const double cosine = args.cosine[row];
      const bool conflict = args.options.dual ? cosine < mean_cosine && gap(row) > mean_gap
                                              : cosine < 0;
      args.mask[row] = finite && conflict;
      args.strength[row] = args.mask[row] ? float(strength(row)) : 0.0f;
      if (!finite) args.cosine[row] = std::numeric_limits<float>::quiet_NaN();
    }
  }

  double strength(int64_t row) const {  // Eq. 10
    if (!args.options.blend) return 0;
    const double total = double(reliability(0, row)) + double(reliability(1, row));
    return 1 / (1 + std::exp(-gap(row) / (total + args.options.eps)));
  }

  void blend(const Unit& unit, const Layer& layer) {
    for (int64_t i = unit.begin; i < unit.end; ++i) {
      const int64_t row = layer.first_row + i;
      if (!args.mask[row]) continue;
      const int strong = reliability(0, row) >= reliability(1, row) ? 0 : 1;  // Eq. 7
      const int weak = 1 - strong;
      const double* d = dots + kDots * row;
      const double lambda = strength(row);
      const double p = 1 - lambda;
      const double q = lambda - p * d[2] / (d[strong] + args.options.eps);
      each_run(layer, i, unit.first, unit.last, {kGradient, kGradient + 1}, {weak},
               [&](void* const* g, int64_t n) {
                 kernels.blend[int(layer.type[kGradient])](g[weak], g[strong], n, p, q);
               });
    }
  }
};

void Plan::correct(const Table& table, const Correction& args, const Kernels& kernels,
                   int threads) {
  prepare(table);
  // Given dots are only read.
  double* dots = args.dots ? const_cast<double*>(args.dots) : dots_.data();
  run(queue_, threads, args.dots ? bytes_ / 4 : bytes_,
      Correcting{*this, table, args, kernels, dots});
}

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
    if (unit.slot >= 0 && plan.progress_[size_t(unit.layer)].left.fetch_sub(
                              1, std::memory_order_acq_rel) == 1) {
      join(layer, plan.slot_of_layer_[size_t(unit.layer)]);
    }
  }

  void observe(const Unit& unit, const Layer& layer, int64_t i, double* sums) {
    const int64_t row = layer.first_row + i;
    const int type = int(layer.type[kGradient]);
    // Where one of two weights is not read, its twin's stands in; `record` drops that sum.
    const int rgb = layer.data[kWeight] ? kWeight : kWeight + 1;
    const int ir = layer.data[kWeight + 1] ? kWeight + 1 : kWeight;
    const int theta = layer.data[rgb] ? int(layer.type[rgb]) : kAbsent;
    const int mu = layer.data[kMean] ? int(layer.type[kMean]) : 2;
    double lanes[kSums * kLanes] = {};
    const double w[2] = {args.weight ? args.weight[row] : 0.0,
                         args.weight ? args.weight[table.rows() + row] : 0.0};
    each_run(layer, i, unit.first, unit.last, {0, 1, 2, 3, 4, 5},
             {kMean, kMean + 1}, [&](void* const* p, int64_t n) {
               kernels.observe[type][theta][mu]({{p[0], p[1]}, {p[rgb], p[ir]}, {p[4], p[5]}}, n, w,
                                                lanes);
             });
    for (int s = 0; s < kSums; ++s) sums[s] = kernels.fold(lanes + s * kLanes);
  }

  void record(const Layer& layer, int64_t row, const double* sums) {
    std::copy(sums, sums + kDots, args.dots + kDots * row);
    for (int m = 0; m < 2; ++m) {
      const int64_t at = m * table.rows() + row;
      const bool finite = std::isfinite(sums[m]);
      args.observed[at] = finite;
      args.dot[at] = finite && layer.data[kWeight + m] ? sums[kDots + m] : 0.0;
      args.deviation[at] = finite ? sums[kDots + 2 + m] / double(layer.row_size) : 0.0;
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
  run(reducing_, threads, bytes_, Observing{*this, table, args, kernels});
}

}  // namespace ragrad::cpu
