// How the work is shared out.
//
// A layer's conflicts are known only when all its rows have been summed (Eq. 6), so its rows are
// walked twice: observed, then, those that change alone, rewritten. Both are units in one queue,
// and threads take the next unit by ticket. The thread that observes a layer's last unit decides
// for the whole layer. The units that apply what was decided follow some units after the layer's
// last one that observes: hardly any thread waits for them, and the rows are still in the cache. A
// thread only ever waits for units with lower tickets, which running threads hold: it cannot wait
// for ever.
#include "cpu.h"

#include <algorithm>
#include <limits>

#include "team.h"

namespace ragrad::cpu {

namespace {

constexpr int64_t kUnitElements = 1 << 15;    // a side: enough to outweigh a ticket many times
constexpr int64_t kBytesPerThread = 1 << 20;  // less than this is not worth a thread of its own
constexpr int64_t kLag = 8;                   // units between the end of a layer and its rewrite

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
  observing_.clear();
  queue_.clear();
  units_of_layer_.clear();
  slot_of_layer_.clear();
  bytes_ = 0;
  int64_t slots = 0;
  std::vector<std::pair<size_t, std::vector<Unit>>> waiting;  // units that apply, and from when
  const auto release = [&](size_t observed) {
    while (!waiting.empty() && waiting.front().first <= observed) {
      // Backwards: the rows that were observed last are the likeliest to be in the cache still.
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
      observing_.push_back(unit);
      queue_.push_back(unit);
      release(observing_.size());
    }
    for (Unit& unit : units) unit.applies = true;
    waiting.emplace_back(observing_.size() + kLag, std::move(units));
  }
  release(std::numeric_limits<size_t>::max());
  progress_ = std::make_unique<Progress[]>(layers.size());
  gram_.resize(size_t(kGram * table.rows()));
  mix_.resize(size_t(kMix * table.rows()));
  partials_.resize(size_t(kSums * slots));
  version_ = table.version();
}

void Plan::run(const std::vector<Unit>& units, int threads, int64_t bytes,
               const std::function<void(const Unit&)>& work) {
  for (size_t k = 0; k < units_of_layer_.size(); ++k) {
    progress_[k].left.store(units_of_layer_[k], std::memory_order_relaxed);
    progress_[k].decided.store(false, std::memory_order_relaxed);
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

}  // namespace ragrad::cpu
