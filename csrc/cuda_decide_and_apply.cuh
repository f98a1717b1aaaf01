// Eq. 6-10 in one launch: the sums of every row, decide layer by layer, apply to conflict rows.
#pragma once

#include "cuda_apply.cuh"
#include "cuda_decide.cuh"
#include "cuda_gram.cuh"
#include "cuda_sync.cuh"

namespace ragrad::cuda {

// Apply to kSharePieces pieces, which the warps take in turn. Each lane looks at one piece; the
// warp rewrites those that conflict, few in practice, together, one after the other.
template <class G>
__device__ inline void apply_share(const DecideAndApplyArgs& args, const LayerArgs<2>& layer,
                                   uint32_t share) {
  static_assert(kSharePieces <= kThreads);
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int mine = lane * kWarps + warp;
  const int64_t first = int64_t(share) * kSharePieces, index = first + mine;
  const bool conflict = mine < kSharePieces && index < layer.channels * layer.pieces &&
                        args.out.mask[layer.first_row + piece_of(layer, index).row];
  for (uint32_t left = __ballot_sync(0xffffffffu, conflict); left != 0; left &= left - 1) {
    const Piece piece = piece_of(layer, first + (__ffs(int(left)) - 1) * kWarps + warp);
    const double* mix = args.mix + kMix * (layer.first_row + piece.row);
    apply_piece<G>(layer, args.walks, piece, mix, lane, kWarp);
  }
}

// Tickets order the units. A share of a layer waits until the layer is decided.
template <class G>
__global__ void __launch_bounds__(kThreads, 3)
    decide_and_apply_kernel(const __grid_constant__ DecideAndApplyArgs args) {
  const auto& queue = args.queue;
  int entry = 0;
  for (uint32_t ticket = take_ticket(args.counters); ticket < queue.first[queue.entries];
       ticket = take_ticket(args.counters)) {
    while (ticket >= queue.first[entry + 1]) ++entry;
    const uint32_t unit = ticket - queue.first[entry];
    const LayerArgs<2>& layer = args.layer[queue.what[entry] & ~kApply];
    if (queue.what[entry] & kApply) {
      wait_for(args.counters.ready[layer.slot]);
      apply_share<G>(args, layer, unit);
    } else {
      if (args.out.gram == nullptr) unit_gram<G>(args, layer, unit);
      if (last_to_arrive(args.counters, layer)) {
        decide(args, layer);
        publish(args.counters.ready[layer.slot]);
      }
    }
  }
  leave(args, true);
}

}  // namespace ragrad::cuda
