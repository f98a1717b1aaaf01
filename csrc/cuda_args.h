// What a kernel is told: the layers of one launch, by value in its arguments.
//
// So nothing is copied to the device beforehand, a pointer that moved costs nothing, and a captured
// graph holds all that it needs. Arguments may take 32,764 bytes (CUDA 12.1 and newer). A table of
// more layers takes several launches, for layers do not depend on each other.
#pragma once

#include <cstdint>

#include "step.h"

namespace ragrad::cuda {

constexpr int kThreads = 256;  // of every block
constexpr int kWarp = 32;
constexpr int kWarps = kThreads / kWarp;
constexpr int kMaxArgs = 32764;

constexpr int kGram = 3;     // |g_rgb|^2, |g_ir|^2, g_rgb . g_ir
constexpr int kRowSums = 7;  // these; g . theta of rgb, of ir; |g - mu|^2 of rgb, of ir
constexpr int kMix = 4;      // M of a row, row-major

// Where the elements of a row are, if they are not one run.
template <int kOps>
struct Walk {
  int ndim;
  int64_t size[kMaxDims];
  int64_t stride[kOps][kMaxDims];
};

// The rows of one layer, cut into pieces (a row, or a part of a long one), and these into units:
// what a block takes at a time. The cut depends on the table alone, so sums do not depend on how
// many blocks a device runs.
template <int kOps>
struct LayerArgs {
  void* data[kOps];  // null: not read
  int64_t channel_stride[kOps];
  int64_t first_row, channels, row_size;
  int64_t piece_size;   // elements
  int64_t unit_pieces;  // pieces of a unit
  double* sums;         // those of the first piece; the others follow
  int pieces;           // of a row
  int sum_pieces;       // how many sums a row has: one per piece, or one if they are given
  uint32_t units;
  uint32_t shares;    // shares of apply in `decide_and_apply`, of kSharePieces pieces each
  int slot;           // of its counters
  int walk;           // which of Args::walks; -1 if a row is one run
  uint8_t lanes;      // threads that share a piece
  uint8_t sum_lanes;  // threads that share a row's sums
  bool aligned;       // every row of every operand can be read 16 bytes at a time
  uint8_t type[kOps];
};

// A queue of units: entry e holds the tickets from first[e] to first[e + 1].
template <int kEntries>
struct Queue {
  int entries;
  uint32_t first[kEntries + 1];
  uint16_t what[kEntries];  // the layer; kApply is added for its shares of apply
};
constexpr int kApply = 1 << 15;
constexpr int kSharePieces = 32;  // about a tenth of them conflict: some for every warp

// Counters in the workspace, all zero between launches. The arrays have one entry per layer.
struct Counters {
  uint32_t* ticket;   // the next one
  uint32_t* left;     // blocks that found the queue empty
  uint32_t* arrived;  // units of a layer whose sums are done
  uint32_t* ready;    // whether the layer is decided
};

struct ObserveArgs {
  static constexpr int kOps = kOperands, kLayers = 150, kWalks = 8;
  Observation out;
  int64_t rows;
  Counters counters;
  int layers, strided;  // how many of layer and walks are used
  LayerArgs<kOps> layer[kLayers];
  Walk<kOps> walks[kWalks];
  Queue<kLayers> queue;
};
static_assert(sizeof(ObserveArgs) <= kMaxArgs);

struct ApplyArgs {
  static constexpr int kOps = 2, kLayers = 240, kWalks = 12;
  Mixing in;
  int layers, strided;  // how many of layer and walks are used
  LayerArgs<kOps> layer[kLayers];
  Walk<kOps> walks[kWalks];
  Queue<kLayers> queue;
};
static_assert(sizeof(ApplyArgs) <= kMaxArgs);

struct DecideAndApplyArgs {
  static constexpr int kOps = 2, kLayers = 240, kWalks = 12;
  Correction out;
  int64_t rows;
  double* mix;  // (rows, 2, 2): M of the rows that conflict, from decide to apply
  Counters counters;
  int layers, strided;  // how many of layer and walks are used
  LayerArgs<kOps> layer[kLayers];
  Walk<kOps> walks[kWalks];
  Queue<2 * kLayers> queue;
};
static_assert(sizeof(DecideAndApplyArgs) <= kMaxArgs);

}  // namespace ragrad::cuda
