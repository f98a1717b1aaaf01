// Decide: Eq. 6-10, from the sums of a layer to the matrix of every row that conflicts.
#pragma once

#include "cuda_rows.cuh"

namespace ragrad::cuda {

// By one block, for a layer whose sums are all there.
__device__ inline void decide(const DecideAndApplyArgs& args, const LayerArgs<2>& layer) {
  const Correction& out = args.out;
  const float* r_rgb = out.reliability + layer.first_row;
  const float* r_ir = r_rgb + args.rows;
  double sums[4] = {};  // negative cosines and how many, gaps, rows that are not finite
  for (int64_t at = 0; at < layer.channels; at += kThreads / layer.sum_lanes) {
    const int64_t i = at + threadIdx.x / layer.sum_lanes;
    double gram[kGram];
    sum_pieces(layer, i, gram);
    if (i >= layer.channels || threadIdx.x % layer.sum_lanes != 0) continue;
    for (int d = 0; d < kGram && layer.sum_pieces > 1; ++d) {
      layer.sums[i * layer.sum_pieces * kGram + d] = gram[d];
    }
    const double norms = sqrt(gram[0]) * sqrt(gram[1]);
    const float cosine = norms == 0 ? 0.0f : float(gram[2] / norms);
    out.cosine[layer.first_row + i] = cosine;
    sums[0] += cosine < 0 ? cosine : 0;
    sums[1] += cosine < 0;
    sums[2] += fabs(double(r_rgb[i]) - double(r_ir[i]));
    sums[3] += !isfinite(gram[0]) || !isfinite(gram[1]);
  }
  sum_over_block(sums);
  const double mean_cosine = sums[0] / sums[1];  // nan without a negative one: nothing is below it
  const double mean_gap = sums[2] / double(layer.channels);
  const bool finite = sums[3] == 0;

  for (int64_t i = threadIdx.x; i < layer.channels; i += kThreads) {
    const int64_t row = layer.first_row + i;
    const double a = r_rgb[i], b = r_ir[i], gap = fabs(a - b), cosine = out.cosine[row];
    const bool conflict =  // Eq. 6
        finite && cosine < 0 && (!out.rule.dual || (cosine < mean_cosine && gap > mean_gap));
    double lambda = 0;
    if (conflict) {
      const int strong = a >= b ? 0 : 1, weak = 1 - strong;                       // Eq. 7
      if (out.rule.blend) lambda = 1 / (1 + exp(-gap / (a + b + out.rule.eps)));  // Eq. 10
      const double* gram = layer.sums + i * layer.sum_pieces * kGram;
      const double kept = 1 - lambda;
      double* mix = args.mix + kMix * row;
      mix[2 * weak + weak] = kept;
      mix[2 * weak + strong] = lambda - kept * gram[2] / (gram[strong] + out.rule.eps);  // Eq. 8, 9
      mix[2 * strong + weak] = 0;
      mix[2 * strong + strong] = 1;
    }
    if (!finite) out.cosine[row] = NAN;
    out.gap[row] = float(gap);
    out.mask[row] = conflict;
    out.strength[row] = float(lambda);
  }
}

}  // namespace ragrad::cuda
