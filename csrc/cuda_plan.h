// How a table is cut into launches, units and pieces, and where the workspace holds what.
#pragma once

#include <algorithm>

#include "cuda_args.h"

namespace ragrad::cuda {

// Bytes are those of one of the two gradients. Tests shrink these numbers.
struct Limits {
  int64_t piece_bytes = 4 << 10;  // a longer row is split: two loads per lane, four at a time
  int64_t unit_bytes = 32 << 10;  // long against a ticket, short against a launch
  int64_t row_pieces = 4096;      // of the longest rows, for one block adds them up
  int layers = 1 << 30;           // of a launch
};
inline Limits limits;

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The power of two of lanes that leaves each of them about four things to do.
inline int lanes_for(int64_t things) {
  int lanes = 1;
  while (lanes < kWarp && lanes * 4 < things) lanes *= 2;
  return lanes;
}

struct Cut {
  int64_t pieces, piece_size, unit_pieces, units;
  int lanes;

  explicit Cut(const Layer& layer) {
    const int64_t bytes = bytes_of(layer.type[kGradient]), vector = 16 / bytes;
    const int64_t longest =
        std::max(limits.piece_bytes / bytes, ceil_div(layer.row_size, limits.row_pieces));
    piece_size = ceil_div(layer.row_size, ceil_div(layer.row_size, longest));
    // Every piece starts at a whole vector, so that an aligned row has aligned pieces.
    if (piece_size < layer.row_size) piece_size = ceil_div(piece_size, vector) * vector;
    pieces = ceil_div(layer.row_size, piece_size);
    lanes = lanes_for(ceil_div(piece_size, vector));
    const int64_t groups = kThreads / lanes;
    unit_pieces = groups * std::max<int64_t>(1, limits.unit_bytes / (groups * piece_size * bytes));
    units = ceil_div(layer.channels * pieces, unit_pieces);
  }
};

struct Workspace {
  Counters counters;
  double* mix;   // of every row
  double* sums;  // of every piece

  Workspace(const Table& table, void* memory) {
    const size_t layers = table.layers().size();
    auto* words = static_cast<uint32_t*>(memory);
    counters = {words, words + 1, words + 2, words + 2 + layers};
    mix = static_cast<double*>(memory) + 1 + layers;
    sums = mix + kMix * table.rows();
  }

  static int64_t bytes(const Table& table) {
    int64_t pieces = 0;
    for (const Layer& layer : table.layers()) pieces += layer.channels * Cut(layer).pieces;
    return 8 * (1 + int64_t(table.layers().size()) + kMix * table.rows() + kRowSums * pieces);
  }
};

// Whether all operands of the layer can be read in chunks of what is 16 bytes of the gradient.
template <int kOps>
bool aligned(const LayerArgs<kOps>& rows, const Layer& layer) {
  const int64_t vector = 16 / bytes_of(layer.type[kGradient]);
  for (int o = 0; o < kOps; ++o) {
    const int64_t bytes = bytes_of(layer.type[o]), chunk = std::min<int64_t>(16, vector * bytes);
    if (!rows.data[o]) continue;
    if (reinterpret_cast<uintptr_t>(rows.data[o]) % uintptr_t(chunk) != 0) return false;
    if (rows.channels > 1 && rows.channel_stride[o] * bytes % chunk != 0) return false;
  }
  return true;
}

// Puts one more layer into a launch. `dense`: whether its rows are read as runs.
template <class Args>
void add_layer(Args& args, const Layer& layer, const Cut& cut, bool dense, int slot, double* sums) {
  constexpr int kOps = Args::kOps;
  LayerArgs<kOps>& rows = args.layer[args.layers++];
  for (int o = 0; o < kOps; ++o) {
    rows.data[o] = layer.data[o];
    rows.channel_stride[o] = layer.channel_stride[o];
    rows.type[o] = uint8_t(layer.type[o]);
  }
  rows.first_row = layer.first_row;
  rows.channels = layer.channels;
  rows.row_size = layer.row_size;
  rows.piece_size = cut.piece_size;
  rows.unit_pieces = cut.unit_pieces;
  rows.pieces = rows.sum_pieces = int(cut.pieces);
  rows.units = uint32_t(cut.units);
  rows.shares = uint32_t(ceil_div(layer.channels * cut.pieces, kSharePieces));
  rows.lanes = uint8_t(cut.lanes);
  rows.sum_lanes = uint8_t(lanes_for(cut.pieces));
  rows.aligned = aligned(rows, layer);
  rows.slot = slot;
  rows.sums = sums;
  rows.walk = -1;
  if (dense) return;
  rows.walk = args.strided;
  Walk<kOps>& walk = args.walks[args.strided++];
  walk.ndim = layer.ndim;
  for (int d = 0; d < layer.ndim; ++d) {
    walk.size[d] = layer.size[d];
    for (int o = 0; o < kOps; ++o) walk.stride[o][d] = layer.stride[o][d];
  }
}

template <class Queue>
void enqueue(Queue& queue, int what, int64_t tickets) {
  queue.what[queue.entries] = uint16_t(what);
  queue.first[queue.entries + 1] = queue.first[queue.entries] + uint32_t(tickets);
  ++queue.entries;
}

template <class Queue>
void clear(Queue& queue) {
  queue.entries = 0;
  queue.first[0] = 0;
}

// The units of every layer.
template <class Args>
void enqueue_units(Args& args) {
  clear(args.queue);
  for (int l = 0; l < args.layers; ++l) enqueue(args.queue, l, args.layer[l].units);
}

// Sums of every layer, then its shares of apply: a grid's worth of units after its last sum, when
// blocks have just finished these. That is late enough not to wait, and early enough to find the
// rows in the cache.
inline void enqueue_decide_and_apply(DecideAndApplyArgs& args, uint32_t grid) {
  auto& queue = args.queue;
  clear(queue);
  uint32_t summed[DecideAndApplyArgs::kLayers];  // the first ticket after the layer's sums
  int next = 0;                                  // the next layer to apply
  const auto apply = [&] {
    enqueue(queue, next | kApply, args.layer[next].shares);
    ++next;
  };
  for (int l = 0; l < args.layers; ++l) {
    enqueue(queue, l, args.layer[l].units);
    summed[l] = queue.first[queue.entries];
    while (next <= l && summed[next] + grid <= queue.first[queue.entries]) apply();
  }
  while (next < args.layers) apply();
}

}  // namespace ragrad::cuda
