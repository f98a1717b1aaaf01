// How the elements of one row are reached on the CPU, whatever its strides.
#pragma once

#include <algorithm>
#include <cstdint>
#include <initializer_list>

#include "rows.h"
#include "table.h"

namespace ragrad::cpu {

constexpr int64_t kTile = 1024;  // elements of strided rows that are packed at a time

inline char* row_of(const Layer& layer, int operand, int64_t row) {
  return static_cast<char*>(layer.data[operand]) +
         row * layer.channel_stride[operand] * bytes_of(layer.type[operand]);
}

// Copies elements first to first + n of a strided row into a buffer, or back.
template <class Word, bool kBack>
void copy(const Layer& layer, int operand, int64_t row, int64_t first, int64_t n, void* buffer) {
  const int inner = layer.ndim - 1;
  const int64_t* stride = layer.stride[operand];
  auto* base = reinterpret_cast<Word*>(row_of(layer, operand, row));
  auto* packed = static_cast<Word*>(buffer);
  int64_t index[kMaxDims];
  for (int d = inner; d >= 0; first /= layer.size[d--]) index[d] = first % layer.size[d];
  while (n > 0) {
    Word* p = base;
    for (int d = 0; d <= inner; ++d) p += index[d] * stride[d];
    const int64_t run = std::min(n, layer.size[inner] - index[inner]);
    for (int64_t k = 0; k < run; ++k) {
      if constexpr (kBack) {
        p[k * stride[inner]] = packed[k];
      } else {
        packed[k] = p[k * stride[inner]];
      }
    }
    packed += run;
    n -= run;
    index[inner] += run;
    for (int d = inner; d > 0 && index[d] == layer.size[d]; --d) {
      index[d] = 0;
      ++index[d - 1];
    }
  }
}

template <bool kBack>
void copy(const Layer& layer, int operand, int64_t row, int64_t first, int64_t n, void* buffer) {
  switch (bytes_of(layer.type[operand])) {
    case 2: return copy<uint16_t, kBack>(layer, operand, row, first, n, buffer);
    case 4: return copy<uint32_t, kBack>(layer, operand, row, first, n, buffer);
    default: return copy<uint64_t, kBack>(layer, operand, row, first, n, buffer);
  }
}

// Calls body(pointers, n) for run after run of the elements first to last of one row, all operands
// of a run being consecutive elements. Strided rows pass through buffers. Runs start at multiples
// of 16 elements, so that sums keep their lanes.
template <class Body>
void each_run(const Layer& layer, int64_t row, int64_t first, int64_t last,
              std::initializer_list<int> reads, std::initializer_list<int> writes, Body body) {
  void* p[kOperands] = {};
  if (layer.dense) {
    for (int o : reads) {
      if (layer.data[o]) p[o] = row_of(layer, o, row) + first * bytes_of(layer.type[o]);
    }
    return body(p, last - first);
  }
  alignas(64) uint64_t buffer[kOperands][kTile];
  for (int64_t at = first; at < last; at += kTile) {
    const int64_t n = std::min(kTile, last - at);
    for (int o : reads) {
      if (!layer.data[o]) continue;
      p[o] = buffer[o];
      copy<false>(layer, o, row, at, n, buffer[o]);
    }
    body(p, n);
    for (int o : writes) {
      if (layer.data[o]) copy<true>(layer, o, row, at, n, buffer[o]);
    }
  }
}

// The Gram sums of elements first to last of channel i.
inline void sum_gram(const Kernels& kernels, const Layer& layer, int64_t i, int64_t first,
                     int64_t last, double* sums) {
  const int type = int(layer.type[kGradient]);
  if (layer.dense) {
    const int64_t at = first * bytes_of(layer.type[kGradient]);
    return kernels.gram[type](row_of(layer, kGradient, i) + at,
                              row_of(layer, kGradient + 1, i) + at, last - first, sums);
  }
  double lanes[kGram * kLanes] = {};
  each_run(layer, i, first, last, {kGradient, kGradient + 1}, {},
           [&](void* const* p, int64_t n) { kernels.add_run[type](p[0], p[1], n, lanes); });
  for (int s = 0; s < kGram; ++s) sums[s] = kernels.fold(lanes + s * kLanes);
}

}  // namespace ragrad::cpu
