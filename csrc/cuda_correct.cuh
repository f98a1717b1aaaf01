// Eq. 6-10 on the device: the dots of every row, a stage per layer, the rewrite of conflict rows.
#pragma once

#include "cuda_rows.cuh"
#include "cuda_sums.cuh"
#include "cuda_sync.cuh"

namespace ragrad::cuda {

constexpr int kUnroll = 4;  // loads of each operand under way in a thread

template <class G, int V, class Sum>
__device__ inline void add_dots(const G* a, const G* b, int n, int lane, int lanes,
                                Sum (&dots)[kDots]) {
  for (int c = lane; c < n; c += kUnroll * lanes) {
    Chunk<G, V> x[kUnroll] = {}, y[kUnroll] = {};  // zeros add nothing to any sum
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      if (c + u * lanes >= n) continue;
      x[u] = chunks<V>(a)[c + u * lanes];
      y[u] = chunks<V>(b)[c + u * lanes];
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
#pragma unroll
      for (int v = 0; v < V; ++v) {
        const float g_rgb = x[u].get(v), g_ir = y[u].get(v);
        dots[0].add(g_rgb, g_rgb);
        dots[1].add(g_ir, g_ir);
        dots[2].add(g_rgb, g_ir);
      }
    }
  }
}

// The dots of one piece, found by a group of lanes; none of them may leave its warp alone, not even
// one whose piece does not exist.
template <class Sum, class G>
__device__ inline void piece_dots(const CorrectArgs& args, const Rows<2>& layer, int64_t index,
                                  bool exists, double (&total)[kDots]) {
  const int lanes = layer.lanes, lane = threadIdx.x % lanes;
  Sum dots[kDots];
  if (exists) {
    const Piece piece = piece_of(layer, index);
    if (layer.walk < 0) {
      const G *a = run<G>(layer, 0, piece), *b = run<G>(layer, 1, piece);
      const int n = layer.aligned ? piece.size / kVector<G> : 0, done = n * kVector<G>;
      add_dots<G, kVector<G>>(a, b, n, lane, lanes, dots);
      add_dots<G, 1>(a + done, b + done, piece.size - done, lane, lanes, dots);
    } else {
      const G *a = static_cast<const G*>(layer.data[0]), *b = static_cast<const G*>(layer.data[1]);
      for (int j = lane; j < piece.size; j += lanes) {
        int64_t place[2];
        locate(layer, args.walks[layer.walk], piece.row, piece.first + j, place);
        add_dots<G, 1>(a + place[0], b + place[1], 1, 0, 1, dots);
      }
    }
  }
  for (int i = 0; i < kDots; ++i) total[i] = sum_over(lanes, dots[i].value());
}

// The dots of one unit's pieces.
template <class G>
__device__ inline void reduce(const CorrectArgs& args, const Rows<2>& layer, uint32_t unit) {
  const int64_t pieces = layer.channels * layer.pieces;
  const int64_t begin = unit * layer.unit_pieces, end = begin + layer.unit_pieces;
  for (int64_t at = begin; at < end && at < pieces; at += kThreads / layer.lanes) {
    const int64_t index = at + threadIdx.x / layer.lanes;
    const bool exists = index < end && index < pieces;
    double dots[kDots];
    bool done = false;
    if (kSlowDouble) {
      piece_dots<Twofold, G>(args, layer, index, exists, dots);
      const bool again = exists && !(trusted(dots[0]) && trusted(dots[1]));
      done = __ballot_sync(0xffffffffu, again) == 0;
    }
    if (!done) piece_dots<Wide, G>(args, layer, index, exists, dots);
    if (!exists || threadIdx.x % layer.lanes != 0) continue;
    for (int i = 0; i < kDots; ++i) layer.sums[index * kDots + i] = dots[i];
  }
}

// Eq. 6, 7 and 10, and both factors of the rewrite, for a layer whose dots are all there.
__device__ inline void decide(const CorrectArgs& args, const Rows<2>& layer) {
  const Correction& out = args.out;
  const float* r_rgb = out.reliability + layer.first_row;
  const float* r_ir = r_rgb + args.rows;
  double sums[4] = {};  // negative cosines and how many, gaps, rows that are not finite
  for (int64_t at = 0; at < layer.channels; at += kThreads / layer.sum_lanes) {
    const int64_t i = at + threadIdx.x / layer.sum_lanes;
    double dots[kDots];
    sum_pieces(layer, i, dots);
    if (i >= layer.channels || threadIdx.x % layer.sum_lanes != 0) continue;
    for (int d = 0; d < kDots && layer.sum_pieces > 1; ++d) {
      layer.sums[i * layer.sum_pieces * kDots + d] = dots[d];
    }
    const double norms = sqrt(dots[0]) * sqrt(dots[1]);
    const float cosine = norms == 0 ? 0.0f : float(dots[2] / norms);
    out.cosine[layer.first_row + i] = cosine;
    sums[0] += cosine < 0 ? cosine : 0;
    sums[1] += cosine < 0;
    sums[2] += fabs(double(r_rgb[i]) - double(r_ir[i]));
    sums[3] += !isfinite(dots[0]) || !isfinite(dots[1]);
  }
  sum_over_block(sums);
  const double mean_cosine = sums[0] / sums[1];  // nan without a negative one: nothing is below it
  const double mean_gap = sums[2] / double(layer.channels);
  const bool finite = sums[3] == 0;

  for (int64_t i = threadIdx.x; i < layer.channels; i += kThreads) {
    const int64_t row = layer.first_row + i;
    const double a = r_rgb[i], b = r_ir[i], gap = fabs(a - b), cosine = out.cosine[row];
    const bool conflict =  // Eq. 6
        finite && cosine < 0 && (!out.options.dual || (cosine < mean_cosine && gap > mean_gap));
    const bool rgb_is_weak = !(a >= b);  // Eq. 7
    double lambda = 0, p = 0, q = 0;
    if (conflict) {
      if (out.options.blend) lambda = 1 / (1 + exp(-gap / (a + b + out.options.eps)));  // Eq. 10
      const double* dots = layer.sums + i * layer.sum_pieces * kDots;
      p = 1 - lambda;
      q = lambda - p * dots[2] / (dots[rgb_is_weak ? 1 : 0] + out.options.eps);  // Eq. 8, 9
    }
    if (!finite) out.cosine[row] = NAN;
    out.gap[row] = float(gap);
    out.mask[row] = conflict;
    out.strength[row] = float(lambda);
    args.scales[2 * row] = rgb_is_weak ? -p : p;
    args.scales[2 * row + 1] = q;
  }
}

// weak = p weak + q strong, by one warp.
template <class G, int V>
__device__ inline void blend(G* __restrict__ weak, const G* __restrict__ strong, int n, double p,
                             double q) {
  constexpr int kUnroll = 2;  // the rows are still in the cache
  for (int c = threadIdx.x % kWarp; c < n; c += kUnroll * kWarp) {
    Chunk<G, V> x[kUnroll] = {}, y[kUnroll] = {};
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      if (c + u * kWarp >= n) continue;
      x[u] = chunks<V>(weak)[c + u * kWarp];
      y[u] = chunks<V>(strong)[c + u * kWarp];
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      if (c + u * kWarp >= n) continue;
#pragma unroll
      for (int v = 0; v < V; ++v) {
        x[u].set(v, saturated<G>(fma(p, double(x[u].get(v)), q * y[u].get(v))));
      }
      chunks<V>(weak)[c + u * kWarp] = x[u];
    }
  }
}

template <class G>
__device__ inline void blend_piece(const CorrectArgs& args, const Rows<2>& layer, int64_t index) {
  const Piece piece = piece_of(layer, index);
  const double* scales = args.scales + 2 * (layer.first_row + piece.row);
  const double p = fabs(scales[0]), q = scales[1];
  const int weak = scales[0] < 0 ? 0 : 1, strong = 1 - weak;
  if (layer.walk < 0) {
    G* x = run<G>(layer, weak, piece);
    const G* y = run<G>(layer, strong, piece);
    const int n = layer.aligned ? piece.size / kVector<G> : 0, done = n * kVector<G>;
    blend<G, kVector<G>>(x, y, n, p, q);
    blend<G, 1>(x + done, y + done, piece.size - done, p, q);
    return;
  }
  for (int j = threadIdx.x % kWarp; j < piece.size; j += kWarp) {
    int64_t place[2];
    locate(layer, args.walks[layer.walk], piece.row, piece.first + j, place);
    G& x = static_cast<G*>(layer.data[weak])[weak ? place[1] : place[0]];
    const G y = static_cast<const G*>(layer.data[strong])[weak ? place[0] : place[1]];
    x = rounded<G>(saturated<G>(fma(p, double(number(x)), q * number(y))));
  }
}

// The rewrite of kBlendPieces pieces, taken by the warps in turn. Each lane looks after one piece;
// those that conflict, few in practice, are rewritten by the warp together, one after the other.
template <class G>
__device__ inline void blend_share(const CorrectArgs& args, const Rows<2>& layer, uint32_t share) {
  static_assert(kBlendPieces <= kThreads);
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int mine = lane * kWarps + warp;
  const int64_t first = int64_t(share) * kBlendPieces, index = first + mine;
  const bool conflict =
      mine < kBlendPieces && index < layer.channels * layer.pieces &&
      args.scales[2 * (layer.first_row + piece_of(layer, index).row)] != 0;
  for (uint32_t left = __ballot_sync(0xffffffffu, conflict); left != 0; left &= left - 1) {
    blend_piece<G>(args, layer, first + (__ffs(int(left)) - 1) * kWarps + warp);
  }
}

// In one launch, tickets order the units and blend(l) waits until decide(l) is done. In two
// launches, the queue of each holds one half, and a block takes every gridDim.x-th unit.
template <class G, bool kOneLaunch>
__global__ void __launch_bounds__(kThreads, 3)
    correct_kernel(const __grid_constant__ CorrectArgs args) {
  const auto& queue = args.queue;
  uint32_t turn = blockIdx.x;
  const auto next = [&] {
    if (kOneLaunch) return take_ticket(args.counters);
    const uint32_t mine = turn;
    turn += gridDim.x;
    return mine;
  };
  int entry = 0;
  for (uint32_t ticket = next(); ticket < queue.first[queue.entries]; ticket = next()) {
    while (ticket >= queue.first[entry + 1]) ++entry;
    const uint32_t unit = ticket - queue.first[entry];
    const Rows<2>& layer = args.layer[queue.what[entry] & ~kBlend];
    if (queue.what[entry] & kBlend) {
      if (kOneLaunch) wait_for(args.counters.ready[layer.slot]);
      blend_share<G>(args, layer, unit);
    } else {
      if (args.out.dots == nullptr) reduce<G>(args, layer, unit);
      if (last_to_arrive(args.counters, layer)) {
        decide(args, layer);
        if (kOneLaunch) publish(args.counters.ready[layer.slot]);
      }
    }
  }
  if (kOneLaunch) leave(args, true);
}

}  // namespace ragrad::cuda
