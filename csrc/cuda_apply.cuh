// Apply: [g_rgb; g_ir] <- M [g_rgb; g_ir], for the rows whose M is not the identity.
#pragma once

#include "cuda_rows.cuh"

namespace ragrad::cuda {

// A row of M: the share of the modality's own gradient in the new one, and that of its twin.
struct Shares {
  double own, twin;
  __device__ Shares(const double* mix, int modality)
      : own(mix[2 * modality + modality]), twin(mix[2 * modality + 1 - modality]) {}
  __device__ bool change() const { return own != 1 || twin != 0; }

  template <class G>
  __device__ float of(float g, float g_twin) const {
    return saturated<G>(fma(own, double(g), twin * double(g_twin)));
  }
};

// x from the old x and y and, if kBoth, y from the same; by a group of lanes.
template <class G, int V, bool kBoth>
__device__ inline void apply_run(G* __restrict__ x, G* __restrict__ y, int n, const Shares& to_x,
                                 const Shares& to_y, int lane, int lanes) {
  constexpr int kUnroll = 2;
  for (int c = lane; c < n; c += kUnroll * lanes) {
    Chunk<G, V> p[kUnroll] = {}, q[kUnroll] = {};
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      if (c + u * lanes >= n) continue;
      p[u] = chunks<V>(x)[c + u * lanes];
      q[u] = chunks<V>(y)[c + u * lanes];
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      if (c + u * lanes >= n) continue;
#pragma unroll
      for (int v = 0; v < V; ++v) {
        const float a = p[u].get(v), b = q[u].get(v);
        p[u].set(v, to_x.of<G>(a, b));
        if (kBoth) q[u].set(v, to_y.of<G>(b, a));
      }
      chunks<V>(x)[c + u * lanes] = p[u];
      if (kBoth) chunks<V>(y)[c + u * lanes] = q[u];
    }
  }
}

template <class G, bool kBoth>
__device__ inline void apply_run(G* x, G* y, const LayerArgs<2>& layer, int n, const Shares& to_x,
                                 const Shares& to_y, int lane, int lanes) {
  const int done = layer.aligned ? n / kVector<G> * kVector<G> : 0;
  apply_run<G, kVector<G>, kBoth>(x, y, done / kVector<G>, to_x, to_y, lane, lanes);
  apply_run<G, 1, kBoth>(x + done, y + done, n - done, to_x, to_y, lane, lanes);
}

// One piece of a row, by a group of lanes; `mix` is M of the row.
template <class G>
__device__ inline void apply_piece(const LayerArgs<2>& layer, const Walk<2>* walks,
                                   const Piece& piece, const double* mix, int lane, int lanes) {
  const Shares to_rgb(mix, 0), to_ir(mix, 1);
  const bool rgb = to_rgb.change(), ir = to_ir.change();
  if (!rgb && !ir) return;
  if (layer.walk < 0) {
    G *g_rgb = run<G>(layer, 0, piece), *g_ir = run<G>(layer, 1, piece);
    if (rgb && ir) {
      apply_run<G, true>(g_rgb, g_ir, layer, piece.size, to_rgb, to_ir, lane, lanes);
    } else {
      const Shares to_x = rgb ? to_rgb : to_ir;
      apply_run<G, false>(rgb ? g_rgb : g_ir, rgb ? g_ir : g_rgb, layer, piece.size, to_x, to_x,
                          lane, lanes);
    }
    return;
  }
  for (int j = lane; j < piece.size; j += lanes) {
    int64_t at[2];
    locate(layer, walks[layer.walk], piece.row, piece.first + j, at);
    G &x = static_cast<G*>(layer.data[0])[at[0]], &y = static_cast<G*>(layer.data[1])[at[1]];
    const float a = number(x), b = number(y);
    if (rgb) x = rounded<G>(to_rgb.of<G>(a, b));
    if (ir) y = rounded<G>(to_ir.of<G>(b, a));
  }
}

// By given matrices. Rows do not depend on each other, so no block waits for another.
template <class G>
__global__ void __launch_bounds__(kThreads, 3)
    apply_kernel(const __grid_constant__ ApplyArgs args) {
  const auto& queue = args.queue;
  int entry = 0;
  for (uint32_t ticket = blockIdx.x; ticket < queue.first[queue.entries]; ticket += gridDim.x) {
    while (ticket >= queue.first[entry + 1]) ++entry;
    const LayerArgs<2>& layer = args.layer[queue.what[entry]];
    const int lanes = layer.lanes;
    const int64_t pieces = layer.channels * layer.pieces;
    const int64_t begin = (ticket - queue.first[entry]) * layer.unit_pieces;
    const int64_t end = begin + layer.unit_pieces < pieces ? begin + layer.unit_pieces : pieces;
    for (int64_t at = begin + threadIdx.x / lanes; at < end; at += kThreads / lanes) {
      const Piece piece = piece_of(layer, at);
      const double* mix = args.in.mix + kMix * (layer.first_row + piece.row);
      apply_piece<G>(layer, args.walks, piece, mix, threadIdx.x % lanes, lanes);
    }
  }
}

}  // namespace ragrad::cuda
