// Observe: the sums of every row over gradients, weights and history, in one pass; mu moves on
// (Eq. 2 and 4).
//
// All of it in double, on every chip: a pass that reads and writes 32 bytes for a pair of float32
// leaves time for that even where double is slow, or nearly so.
#pragma once

#include "cuda_rows.cuh"
#include "cuda_sync.cuh"

namespace ragrad::cuda {

// Adds one element of one modality to its sums; the new mu.
__device__ inline float remember(double g, double mu, double w, double& deviation) {
  const double d = g - mu;
  deviation = fma(d, d, deviation);
  return float(isfinite(g) ? fma(w, d, mu) : mu);
}

__device__ inline void add_gram(double g_rgb, double g_ir, double (&sums)[kRowSums]) {
  sums[0] = fma(g_rgb, g_rgb, sums[0]);
  sums[1] = fma(g_ir, g_ir, sums[1]);
  sums[2] = fma(g_rgb, g_ir, sums[2]);
}

// The operands of a piece, modality first; null: not read.
template <class G, class M>
struct Operands {
  const G* g[2];
  const G* theta[2];
  M* mu[2];
};

template <class G, class M, int V>
__device__ inline void observe_run(const Operands<G, M>& p, int n, int lane, int lanes,
                                   const double (&w)[2], double (&sums)[kRowSums]) {
  for (int c = lane; c < n; c += lanes) {
    Chunk<G, V> g[2], theta[2] = {};
    Chunk<M, V> mu[2] = {};
#pragma unroll
    for (int m = 0; m < 2; ++m) {
      g[m] = chunks<V>(p.g[m])[c];
      if (p.theta[m]) theta[m] = chunks<V>(p.theta[m])[c];
      if (p.mu[m]) mu[m] = chunks<V>(p.mu[m])[c];
    }
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const double x[2] = {g[0].get(v), g[1].get(v)};
      add_gram(x[0], x[1], sums);
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        sums[3 + m] = fma(x[m], double(theta[m].get(v)), sums[3 + m]);
        mu[m].set(v, remember(x[m], mu[m].get(v), w[m], sums[5 + m]));
      }
    }
#pragma unroll
    for (int m = 0; m < 2; ++m) {
      if (p.mu[m]) chunks<V>(p.mu[m])[c] = mu[m];
    }
  }
}

// Rows of any strides and types, one element at a time.
__device__ inline void observe_walk(const LayerArgs<kOperands>& layer, const Walk<kOperands>& walk,
                                    const Piece& piece, int lane, const double (&w)[2],
                                    double (&sums)[kRowSums]) {
  for (int j = lane; j < piece.size; j += layer.lanes) {
    int64_t at[kOperands];
    locate(layer, walk, piece.row, piece.first + j, at);
    const auto read = [&](int o) { return number(layer.data[o], at[o], layer.type[o]); };
    double x[2];
#pragma unroll
    for (int m = 0; m < 2; ++m) {
      const int theta = kWeight + m, mu = kMean + m;
      x[m] = read(kGradient + m);
      if (layer.data[theta]) sums[3 + m] = fma(x[m], read(theta), sums[3 + m]);
      if (!layer.data[mu]) continue;
      const float moved = remember(x[m], read(mu), w[m], sums[5 + m]);
      if (Type(layer.type[mu]) == Type::bf16) {
        static_cast<bf16*>(layer.data[mu])[at[mu]] = rounded<bf16>(moved);
      } else {
        static_cast<float*>(layer.data[mu])[at[mu]] = rounded<float>(moved);
      }
    }
    add_gram(x[0], x[1], sums);
  }
}

// A row's sums as the caller gets them.
__device__ inline void write_row(const ObserveArgs& args, const LayerArgs<kOperands>& layer,
                                 int64_t i, const double (&sums)[kRowSums]) {
  const int64_t row = layer.first_row + i;
  for (int d = 0; d < kGram; ++d) args.out.gram[kGram * row + d] = sums[d];
  for (int m = 0; m < 2; ++m) {
    const bool observed = isfinite(sums[m]);
    args.out.observed[m * args.rows + row] = observed;
    args.out.g_theta[m * args.rows + row] = observed ? sums[3 + m] : 0;
    args.out.deviation[m * args.rows + row] =
        observed && layer.data[kMean + m] ? sums[5 + m] / double(layer.row_size) : 0;
  }
}

template <class G, class M>
__device__ inline void observe_unit(const ObserveArgs& args, const LayerArgs<kOperands>& layer,
                                    uint32_t unit) {
  const int lanes = layer.lanes, lane = threadIdx.x % lanes;
  const int64_t pieces = layer.channels * layer.pieces;
  const int64_t begin = unit * layer.unit_pieces, end = begin + layer.unit_pieces;
  for (int64_t at = begin; at < end && at < pieces; at += kThreads / lanes) {
    const int64_t index = at + threadIdx.x / lanes;
    const bool mine = index < end && index < pieces;
    double sums[kRowSums] = {};
    if (mine) {
      const Piece piece = piece_of(layer, index);
      double w[2] = {};
      for (int m = 0; m < 2 && args.out.step_size; ++m) {
        w[m] = args.out.step_size[m * args.rows + layer.first_row + piece.row];
      }
      if (layer.walk < 0) {
        Operands<G, M> p;
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          p.g[m] = run<const G>(layer, kGradient + m, piece);
          p.theta[m] = run<const G>(layer, kWeight + m, piece);
          p.mu[m] = run<M>(layer, kMean + m, piece);
        }
        constexpr int V = sizeof(G) > sizeof(M) ? kVector<G> : kVector<M>;
        const int n = layer.aligned ? piece.size / V : 0, done = n * V;
        observe_run<G, M, V>(p, n, lane, lanes, w, sums);
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          p.g[m] += done;
          if (p.theta[m]) p.theta[m] += done;
          if (p.mu[m]) p.mu[m] += done;
        }
        observe_run<G, M, 1>(p, piece.size - done, lane, lanes, w, sums);
      } else {
        observe_walk(layer, args.walks[layer.walk], piece, lane, w, sums);
      }
    }
    for (double& sum : sums) sum = sum_over(lanes, sum);
    if (!mine || lane != 0) continue;
    if (layer.pieces == 1) {
      write_row(args, layer, index, sums);
    } else {
      for (int i = 0; i < kRowSums; ++i) layer.sums[index * kRowSums + i] = sums[i];
    }
  }
}

// The last block of a layer whose rows are split adds the pieces up.
__device__ inline void write_split_rows(const ObserveArgs& args,
                                        const LayerArgs<kOperands>& layer) {
  for (int64_t at = 0; at < layer.channels; at += kThreads / layer.sum_lanes) {
    const int64_t i = at + threadIdx.x / layer.sum_lanes;
    double sums[kRowSums];
    sum_pieces(layer, i, sums);
    if (i < layer.channels && threadIdx.x % layer.sum_lanes == 0) write_row(args, layer, i, sums);
  }
}

template <class G, class M>
__global__ void __launch_bounds__(kThreads, 2)
    observe_kernel(const __grid_constant__ ObserveArgs args) {
  const auto& queue = args.queue;
  int entry = 0;
  for (uint32_t ticket = take_ticket(args.counters); ticket < queue.first[queue.entries];
       ticket = take_ticket(args.counters)) {
    while (ticket >= queue.first[entry + 1]) ++entry;
    const LayerArgs<kOperands>& layer = args.layer[queue.what[entry]];
    observe_unit<G, M>(args, layer, ticket - queue.first[entry]);
    if (layer.pieces > 1 && last_to_arrive(args.counters, layer)) write_split_rows(args, layer);
  }
  leave(args, false);
}

}  // namespace ragrad::cuda
