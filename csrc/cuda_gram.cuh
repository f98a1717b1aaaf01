// Observe, the Gram part of it: |g_rgb|^2, |g_ir|^2 and g_rgb . g_ir of every row.
#pragma once

#include "cuda_rows.cuh"
#include "cuda_sums.cuh"

namespace ragrad::cuda {

template <class G, int V, class Sum>
__device__ inline void add_gram(const G* a, const G* b, int n, int lane, int lanes,
                                Sum (&gram)[kGram]) {
  constexpr int kUnroll = 4;  // loads of each operand under way in a thread
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
        gram[0].add(g_rgb, g_rgb);
        gram[1].add(g_ir, g_ir);
        gram[2].add(g_rgb, g_ir);
      }
    }
  }
}

// The sums of one piece, by a group of lanes. All threads of a warp must call it, those whose piece
// does not exist too.
template <class Sum, class G>
__device__ inline void piece_gram(const DecideAndApplyArgs& args, const LayerArgs<2>& layer,
                                  int64_t index, bool exists, double (&total)[kGram]) {
  const int lanes = layer.lanes, lane = threadIdx.x % lanes;
  Sum gram[kGram];
  if (exists) {
    const Piece piece = piece_of(layer, index);
    if (layer.walk < 0) {
      const G *a = run<G>(layer, 0, piece), *b = run<G>(layer, 1, piece);
      const int n = layer.aligned ? piece.size / kVector<G> : 0, done = n * kVector<G>;
      add_gram<G, kVector<G>>(a, b, n, lane, lanes, gram);
      add_gram<G, 1>(a + done, b + done, piece.size - done, lane, lanes, gram);
    } else {
      const G *a = static_cast<const G*>(layer.data[0]), *b = static_cast<const G*>(layer.data[1]);
      for (int j = lane; j < piece.size; j += lanes) {
        int64_t place[2];
        locate(layer, args.walks[layer.walk], piece.row, piece.first + j, place);
        add_gram<G, 1>(a + place[0], b + place[1], 1, 0, 1, gram);
      }
    }
  }
  for (int i = 0; i < kGram; ++i) total[i] = sum_over(lanes, gram[i].value());
}

// The sums of every piece of a unit.
template <class G>
__device__ inline void unit_gram(const DecideAndApplyArgs& args, const LayerArgs<2>& layer,
                                 uint32_t unit) {
  const int64_t pieces = layer.channels * layer.pieces;
  const int64_t begin = unit * layer.unit_pieces, end = begin + layer.unit_pieces;
  for (int64_t at = begin; at < end && at < pieces; at += kThreads / layer.lanes) {
    const int64_t index = at + threadIdx.x / layer.lanes;
    const bool exists = index < end && index < pieces;
    double gram[kGram];
    bool done = false;
    if (kSlowDouble) {
      piece_gram<Twofold, G>(args, layer, index, exists, gram);
      const bool again = exists && !(trusted(gram[0]) && trusted(gram[1]));
      done = __ballot_sync(0xffffffffu, again) == 0;
    }
    if (!done) piece_gram<Wide, G>(args, layer, index, exists, gram);
    if (!exists || threadIdx.x % layer.lanes != 0) continue;
    for (int i = 0; i < kGram; ++i) layer.sums[index * kGram + i] = gram[i];
  }
}

}  // namespace ragrad::cuda
