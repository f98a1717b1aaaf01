// The inner loops over one run of consecutive elements, compiled once per instruction set.
//
// A sum runs in 16 lanes of double. Element j of a row goes to lane j % 16 (in the Gram sums of
// bfloat16, to the lane that rows.cpp gives it), on every instruction set. Products of two float32
// are exact in double, and nothing is contracted to an FMA, so all instruction sets, and any number
// of threads, give the same bits.
#pragma once

#include <cstdint>

#include "table.h"

namespace ragrad {

constexpr int kLanes = 16;

// The Gram matrix of a row pair, three lane sums: |g_rgb|^2, |g_ir|^2, g_rgb . g_ir
constexpr int kGram = 3;

// The operands of one run of a row, modality first; theta or mu may be absent.
struct Run {
  void* g[2];
  void* theta[2];
  void* mu[2];
};

// The sums of an observation, 16 lanes each: the Gram matrix, g . theta and (g - mu)^2 of rgb and
// ir.
constexpr int kSums = kGram + 4;

constexpr int kAbsent = 4;  // in place of a type: this operand is not read

struct Kernels {
  const char* name;
  // The sum of 16 lanes, in the one order that every sum of a row has.
  double (*fold)(const double* lanes);
  // out = a.a, b.b, a.b of a whole row of n elements.
  void (*gram[3])(const void* a, const void* b, int64_t n, double out[kGram]);
  // The same for one run of a row: the lanes, acc is (3, 16), are added to.
  void (*add_run[3])(const void* a, const void* b, int64_t n, double* acc);
  // All of acc (7, 16), and mu += w (g - mu) where g is finite (Eq. 4). Indices: the types of g, of
  // theta, and of mu (float32 or bfloat16; 2 if absent), each the same for both modalities.
  void (*observe[3][kAbsent + 1][3])(const Run& run, int64_t n, const double* w, double* acc);
  // own = p own + q other, rounded once, saturating.
  void (*mix_one[3])(void* own, const void* other, int64_t n, double p, double q);
  // Both at once, from the old values: rgb = m0 rgb + m1 ir, ir = m2 rgb + m3 ir.
  void (*mix_both[3])(void* rgb, void* ir, int64_t n, const double m[4]);
};

extern const Kernels kernels_baseline, kernels_avx2, kernels_avx512;

}  // namespace ragrad
