// The inner loops over one run of consecutive elements, compiled once per instruction set.
//
// A sum runs in 16 lanes of double: element j of a row goes to lane j % 16, on every instruction
// set. Products of two float32 are exact in double, and nothing is contracted to an FMA, so all
// instruction sets, and any number of threads, give the same bits.
#pragma once

#include <cstdint>

#include "table.h"

namespace ragrad {

constexpr int kLanes = 16;

// Three lane sums side by side: |g_rgb|^2, |g_ir|^2, g_rgb . g_ir
constexpr int kDots = 3;

struct Kernels {
  const char* name;
  // acc[0:3] += a a, b b, a b.  n elements; acc is (3, 16).
  void (*dots[3])(const void* a, const void* b, int64_t n, double* acc);
  // acc += g theta.  acc is (16,). The second index is the type of theta.
  void (*weigh[3][4])(const void* g, const void* theta, int64_t n, double* acc);
  // acc += (g - mu)^2, then mu += w (g - mu) where g is finite (Eq. 4).
  // The second index is the type of mu, float32 or bfloat16.
  void (*remember[3][2])(const void* g, void* mu, int64_t n, double w, double* acc);
  // weak = p weak + q strong (Eq. 8 and 9 in one), rounded once, saturating.
  void (*blend[3])(void* weak, const void* strong, int64_t n, double p, double q);
};

extern const Kernels kernels_baseline, kernels_avx2, kernels_avx512;

}  // namespace ragrad
