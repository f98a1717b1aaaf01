// Elements, pieces of rows, and sums over them.
#pragma once

#include "cuda_args.h"

#ifdef __CUDACC__
#include <cuda_fp16.h>
#else
#include "cuda_shim.h"
#endif

namespace ragrad::cuda {

struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

__device__ inline double number(double x) { return x; }
__device__ inline float number(float x) { return x; }
__device__ inline float number(bf16 x) { return __uint_as_float(uint32_t(x.bits) << 16); }
__device__ inline float number(f16 x) { return __half2float(__ushort_as_half(x.bits)); }

// To the nearest T, ties to even; x is no nan.
template <class T>
__device__ inline T rounded(float x);
template <>
__device__ inline float rounded<float>(float x) {
  return x;
}
template <>
__device__ inline bf16 rounded<bf16>(float x) {
  const uint32_t bits = __float_as_uint(x);
  return {uint16_t((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}
template <>
__device__ inline f16 rounded<f16>(float x) {
  return {__half_as_ushort(__float2half_rn(x))};
}

template <class T>
constexpr float kLargest = 0x1.fffffep127f;
template <>
constexpr float kLargest<bf16> = 0x1.fep127f;
template <>
constexpr float kLargest<f16> = 65504.0f;

// Beyond the range of T it saturates: a correction makes no inf of finite gradients.
template <class T>
__device__ inline float saturated(double x) {
  return fminf(fmaxf(float(x), -kLargest<T>), kLargest<T>);
}

// An element whose type is known at run time only.
__device__ inline double number(const void* data, int64_t at, uint8_t type) {
  switch (Type(type)) {
    case Type::f32: return number(static_cast<const float*>(data)[at]);
    case Type::bf16: return number(static_cast<const bf16*>(data)[at]);
    case Type::f16: return number(static_cast<const f16*>(data)[at]);
    default: return number(static_cast<const double*>(data)[at]);
  }
}

// V elements that are read and written together.
template <class T, int V, bool kPairs = sizeof(T) == 2 && V % 2 == 0>
struct alignas(V * sizeof(T) < 16 ? V * sizeof(T) : 16) Chunk {
  T x[V];
  __device__ float get(int v) const { return number(x[v]); }
  __device__ void set(int v, float value) { x[v] = rounded<T>(value); }
};

// Elements of 16 bits stay together in pairs until they are used: one by one they would take a
// register each.
template <class T, int V>
struct alignas(V * sizeof(T) < 16 ? V * sizeof(T) : 16) Chunk<T, V, true> {
  uint32_t pairs[V / 2];
  __device__ float get(int v) const { return number(T{uint16_t(pairs[v / 2] >> (v % 2 * 16))}); }
  __device__ void set(int v, float value) {
    const uint32_t bits = rounded<T>(value).bits, pair = pairs[v / 2];
    pairs[v / 2] = v % 2 ? (pair & 0xffffu) | bits << 16 : (pair & 0xffff0000u) | bits;
  }
};

template <class T>
constexpr int kVector = 16 / int(sizeof(T));  // elements of a 16-byte chunk

template <int V, class T>
__device__ inline const Chunk<T, V>* chunks(const T* p) {
  return reinterpret_cast<const Chunk<T, V>*>(p);
}
template <int V, class T>
__device__ inline Chunk<T, V>* chunks(T* p) {
  return reinterpret_cast<Chunk<T, V>*>(p);
}

// Which part of which row.
struct Piece {
  int64_t row, first;
  int size;
};

template <int kOps>
__device__ inline Piece piece_of(const LayerArgs<kOps>& layer, int64_t index) {
  if (layer.pieces == 1) return {index, 0, int(layer.row_size)};
  const int64_t row = index / layer.pieces;
  const int64_t first = (index - row * layer.pieces) * layer.piece_size;
  const int64_t rest = layer.row_size - first;
  return {row, first, int(rest < layer.piece_size ? rest : layer.piece_size)};
}

// The first element of a piece, where a row is one run.
template <class T, int kOps>
__device__ inline T* run(const LayerArgs<kOps>& layer, int operand, const Piece& piece) {
  if (layer.data[operand] == nullptr) return nullptr;
  return static_cast<T*>(layer.data[operand]) + piece.row * layer.channel_stride[operand] +
         piece.first;
}

// Where element j of a row is for every operand, if it is not.
template <int kOps>
__device__ inline void locate(const LayerArgs<kOps>& layer, const Walk<kOps>& walk, int64_t row,
                              int64_t j, int64_t (&at)[kOps]) {
  for (int o = 0; o < kOps; ++o) at[o] = row * layer.channel_stride[o];
#pragma unroll 1
  for (int d = walk.ndim - 1; d >= 0; --d) {
    const int64_t outer = d > 0 ? j / walk.size[d] : 0;
    const int64_t inner = j - outer * walk.size[d];
    for (int o = 0; o < kOps; ++o) at[o] += inner * walk.stride[o][d];
    j = outer;
  }
}

// The sum over a group of `lanes` threads, a power of two; the same bits in each of them. All
// threads of a warp must call it.
__device__ inline double sum_over(int lanes, double x) {
  for (int step = lanes / 2; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
  return x;
}

// Of all threads of the block, in a fixed order.
template <int n>
__device__ inline void sum_over_block(double (&x)[n]) {
  __shared__ double warps[n][kWarps];
  __syncthreads();
  for (int i = 0; i < n; ++i) {
    const double sum = sum_over(kWarp, x[i]);
    if (threadIdx.x % kWarp == 0) warps[i][threadIdx.x / kWarp] = sum;
  }
  __syncthreads();
  for (int i = 0; i < n; ++i) {
    x[i] = 0;
    for (int w = 0; w < kWarps; ++w) x[i] += warps[i][w];
  }
}

// A row's n sums, from those of its pieces. All threads of a warp must call it.
template <int n, int kOps>
__device__ inline void sum_pieces(const LayerArgs<kOps>& layer, int64_t row, double (&total)[n]) {
  const int lanes = layer.sum_lanes;
  for (double& sum : total) sum = 0;
  if (row < layer.channels) {
    const double* sums = layer.sums + row * layer.sum_pieces * n;
    for (int p = threadIdx.x % lanes; p < layer.sum_pieces; p += lanes) {
      for (int i = 0; i < n; ++i) total[i] += sums[p * int64_t(n) + i];
    }
  }
  for (double& sum : total) sum = sum_over(lanes, sum);
}

}  // namespace ragrad::cuda
