// Sums of products of float32, as good as in double: no square overflows or vanishes, and cosines
// are right to the last bit of float32.
//
// Chips made for computing do this in double, where the products are exact. By the data sheets the
// 3 DFMA and 2 conversions per pair of float32 take an H200 less than a third of the time in which
// it reads the pair. On chips made for graphics double has a 64th of the rate of float. They add in
// pairs of floats: the second keeps what the first loses. A sum that leaves the range where this
// works is made again in double.
#pragma once

#include "cuda_args.h"

#ifndef __CUDACC__
#include "cuda_shim.h"
#endif

namespace ragrad::cuda {

#if defined(__CUDA_ARCH__)
constexpr bool kSlowDouble = __CUDA_ARCH__ != 800 && __CUDA_ARCH__ != 900 && __CUDA_ARCH__ != 1000;
#elif defined(__CUDACC__)
constexpr bool kSlowDouble = false;  // the host's pass over the file, which runs none of this
#else
inline bool& kSlowDouble = shim::slow_double;
#endif

struct Wide {
  double sum = 0;
  __device__ void add(float a, float b) { sum = fma(double(a), double(b), sum); }
  __device__ double value() const { return sum; }
};

struct Twofold {
  float sum = 0, rest = 0;
  // Knuth's TwoSum of an exact product. The intrinsics are never contracted.
  __device__ void add(float a, float b) {
    const float product = __fmul_rn(a, b), below = __fmaf_rn(a, b, -product);
    const float total = __fadd_rn(sum, product), taken = __fadd_rn(total, -sum);
    const float lost =
        __fadd_rn(__fadd_rn(sum, -__fadd_rn(total, -taken)), __fadd_rn(product, -taken));
    rest = __fadd_rn(rest, __fadd_rn(lost, below));
    sum = total;
  }
  __device__ double value() const { return double(sum) + double(rest); }
};

// Whether a Twofold sum of squares can be trusted: nothing overflowed, and what vanished is too
// small to matter. False for nan, and for 0, which may be all that is left of tiny squares.
__device__ inline bool trusted(double squares) { return squares > 0x1p-80 && squares < 0x1p120; }

}  // namespace ragrad::cuda
