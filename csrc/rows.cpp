#include "rows.h"

#include <cstring>
#include <limits>
#include <type_traits>

#include "simd.h"

#ifndef RAGRAD_ISA
#error "compile with -DRAGRAD_ISA=baseline, avx2 or avx512"
#endif

namespace ragrad {
namespace {

constexpr int kVectors = kLanes / kWidth;

// Element types as they lie in memory.
struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

template <class T>
inline Doubles read(const T* p);

template <>
inline Doubles read(const double* p) {
  return load<Doubles>(p);
}

template <>
inline Doubles read(const float* p) {
  return widen(load<Floats>(p));
}

template <>
inline Doubles read(const bf16* p) {
  const Words bits = widen(load<Halves>(p)) << 16;
  return widen(bit_cast<Floats>(bits));
}

template <>
inline Doubles read(const f16* p) {
  const Words half = widen(load<Halves>(p));
  const Words sign = (half & 0x8000u) << 16, magnitude = half & 0x7fffu;
  const Words normal = (magnitude << 13) + (112u << 23);
  const Words special = (magnitude << 13) | 0x7f800000u;
  // a subnormal is a whole number of 2^-24
  const Words subnormal = bit_cast<Words>(__builtin_convertvector(magnitude, Floats) * 0x1p-24f);
  const Words bits = magnitude >= 0x7c00u ? special : magnitude < 0x400u ? subnormal : normal;
  return widen(bit_cast<Floats>(bits | sign));
}

template <class T>
inline void write(T* p, Doubles x);

template <>
inline void write(float* p, Doubles x) {
  store(p, narrow(x));
}

template <>
inline void write(bf16* p, Doubles x) {
  const Words bits = bit_cast<Words>(narrow(x));
  const Words rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;  // to nearest, ties to even
  store(p, narrow(rounded));
}

template <>
inline void write(f16* p, Doubles x) {
  const Words bits = bit_cast<Words>(narrow(x));
  const Words sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7fffffffu;
  const Words normal = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  // Below 2^-14: adding 1/2 leaves the multiple of 2^-24 in the lowest bits, rounded to even.
  const Words subnormal =
      bit_cast<Words>(bit_cast<Floats>(magnitude) + 0.5f) - bit_cast<Words>(Floats{} + 0.5f);
  const Words half = (magnitude < (113u << 23) ? subnormal : normal) | sign;
  store(p, narrow(half));
}

template <class T>
constexpr double largest() = delete;
template <>
constexpr double largest<float>() { return std::numeric_limits<float>::max(); }
template <>
constexpr double largest<bf16>() { return 0x1.fep127; }
template <>
constexpr double largest<f16>() { return 65504.0; }

// What lies beyond the range of T saturates: a correction makes no inf of finite gradients.
template <class T>
inline Doubles clamp(Doubles x) {
  const Doubles top = Doubles{} + largest<T>();
  x = x > top ? top : x;
  return x < -top ? -top : x;
}

// Streams are more than the hardware prefetches well across the ends of pages, hence by hand. A
// prefetch never faults, and behind the end of a row lies the next.
constexpr uintptr_t kAhead = 4096;

template <bool kWrites, class T>
inline void prefetch(const void* base, int64_t element) {
  const uintptr_t at = reinterpret_cast<uintptr_t>(base) + uintptr_t(element) * sizeof(T) + kAhead;
  __builtin_prefetch(reinterpret_cast<const void*>(at), kWrites, 3);
}

// The lanes of one sum in a fixed order: j and j + 8, then j and j + 4, and so on.
inline double fold(const Doubles (&sum)[kVectors]) {
  Doubles part[kVectors];
  std::memcpy(part, sum, sizeof part);
#pragma GCC unroll 8
  for (int half = kVectors / 2; half > 0; half /= 2) {
#pragma GCC unroll 8
    for (int v = 0; v < half; ++v) part[v] += part[v + half];
  }
  return add_up(part[0]);
}

template <class T>
[[gnu::always_inline]] inline void add_dots(const T* a, const T* b, int64_t blocks, Doubles (&sum)[kDots][kVectors]) {
  for (int64_t j = 0; j < blocks * kLanes; j += kLanes) {
    if (sizeof(T) == 4 || j % (2 * kLanes) == 0) {  // once a cache line
      prefetch<false, T>(a, j);
      prefetch<false, T>(b, j);
    }
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      const Doubles x = read(a + j + v * kWidth), y = read(b + j + v * kWidth);
      sum[0][v] = add_exact_product(sum[0][v], x, x);
      sum[1][v] = add_exact_product(sum[1][v], y, y);
      sum[2][v] = add_exact_product(sum[2][v], x, y);
    }
  }
}

template <class T>
[[gnu::always_inline]] inline void add_all_dots(const T* a, const T* b, int64_t n,
                                                Doubles (&sum)[kDots][kVectors]) {
  add_dots(a, b, n / kLanes, sum);
  const size_t rest = size_t(n % kLanes);
  if (rest == 0) return;
  T tail_a[kLanes] = {}, tail_b[kLanes] = {};  // zeros add nothing to any sum
  std::memcpy(tail_a, a + n - rest, rest * sizeof(T));
  std::memcpy(tail_b, b + n - rest, rest * sizeof(T));
  add_dots<T>(tail_a, tail_b, 1, sum);
}

template <class T>
void add_run(const void* a, const void* b, int64_t n, double* acc) {
  Doubles sum[kDots][kVectors];
  std::memcpy(sum, acc, sizeof sum);
  add_all_dots(static_cast<const T*>(a), static_cast<const T*>(b), n, sum);
  std::memcpy(acc, sum, sizeof sum);
}

template <class T>
void dots(const void* a, const void* b, int64_t n, double* out) {
  Doubles sum[kDots][kVectors] = {};
  add_all_dots(static_cast<const T*>(a), static_cast<const T*>(b), n, sum);
  for (int s = 0; s < kDots; ++s) out[s] = fold(sum[s]);
}

struct Absent {};

// All streams move on together. The sums are plain local arrays, so that the compiler keeps them in
// registers although mu is written in between.
template <class T, class U, class M>
void observe_blocks(Run run, int64_t blocks, double w_rgb, double w_ir, double* acc) {
  const double w[2] = {w_rgb, w_ir};
  Doubles sum[kSums][kVectors];
  std::memcpy(sum, acc, sizeof sum);
  for (int64_t j = 0; j < blocks * kLanes; j += kLanes) {
    for (int m = 0; m < 2; ++m) {
      prefetch<false, T>(run.g[m], j);
      if constexpr (!std::is_same_v<U, Absent>) prefetch<false, U>(run.theta[m], j);
      if constexpr (!std::is_same_v<M, Absent>) prefetch<true, M>(run.mu[m], j);
    }
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      const int64_t at = j + v * kWidth;
      Doubles g[2];
#pragma GCC unroll 2
      for (int m = 0; m < 2; ++m) {
        g[m] = read(static_cast<const T*>(run.g[m]) + at);
        sum[m][v] = add_exact_product(sum[m][v], g[m], g[m]);
        if constexpr (!std::is_same_v<U, Absent>) {
          sum[kDots + m][v] += g[m] * read(static_cast<const U*>(run.theta[m]) + at);
        }
        if constexpr (!std::is_same_v<M, Absent>) {
          M* const place = static_cast<M*>(run.mu[m]) + at;
          const Doubles mu = read(place), d = g[m] - mu;
          sum[kDots + 2 + m][v] += d * d;
          write(place, g[m] - g[m] == 0.0 ? mu + w[m] * d : mu);  // inf - inf, nan - nan are nan
        }
      }
      sum[2][v] = add_exact_product(sum[2][v], g[0], g[1]);
    }
  }
  std::memcpy(acc, sum, sizeof sum);
}

template <class T, class U, class M>
void observe(const Run& run, int64_t n, const double* w, double* acc) {
  observe_blocks<T, U, M>(run, n / kLanes, w[0], w[1], acc);
  const size_t rest = size_t(n % kLanes);
  if (rest == 0) return;
  const int64_t j = n - int64_t(rest);
  T g[2][kLanes] = {};
  U theta[2][kLanes] = {};
  M mu[2][kLanes] = {};
  for (int m = 0; m < 2; ++m) {
    std::memcpy(g[m], static_cast<T*>(run.g[m]) + j, rest * sizeof(T));
    if (run.theta[m]) std::memcpy(theta[m], static_cast<U*>(run.theta[m]) + j, rest * sizeof(U));
    if (run.mu[m]) std::memcpy(mu[m], static_cast<M*>(run.mu[m]) + j, rest * sizeof(M));
  }
  const Run tail{{g[0], g[1]}, {theta[0], theta[1]}, {mu[0], mu[1]}};
  observe_blocks<T, U, M>(tail, 1, w[0], w[1], acc);
  for (int m = 0; m < 2; ++m) {
    if (run.mu[m]) std::memcpy(static_cast<M*>(run.mu[m]) + j, mu[m], rest * sizeof(M));
  }
}

template <class T>
[[gnu::always_inline]] inline void blend_blocks(T* weak, const T* strong, int64_t blocks, double p,
                                                double q) {
  for (int64_t j = 0; j < blocks * kLanes; j += kLanes) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      T* const place = weak + j + v * kWidth;
      write(place, clamp<T>(p * read(place) + q * read(strong + j + v * kWidth)));
    }
  }
}

template <class T>
void blend(void* weak, const void* strong, int64_t n, double p, double q) {
  T* const x = static_cast<T*>(weak);
  const T* const y = static_cast<const T*>(strong);
  blend_blocks(x, y, n / kLanes, p, q);
  const size_t rest = size_t(n % kLanes);
  if (rest == 0) return;
  T tail_x[kLanes] = {}, tail_y[kLanes] = {};
  std::memcpy(tail_x, x + n - rest, rest * sizeof(T));
  std::memcpy(tail_y, y + n - rest, rest * sizeof(T));
  blend_blocks<T>(tail_x, tail_y, 1, p, q);
  std::memcpy(x + n - rest, tail_x, rest * sizeof(T));
}

}  // namespace

#define RAGRAD_JOIN(a, b) a##b
#define RAGRAD_NAME(isa) RAGRAD_JOIN(kernels_, isa)
#define RAGRAD_QUOTE(x) #x
#define RAGRAD_STRING(x) RAGRAD_QUOTE(x)

#define RAGRAD_OBSERVE(T, U) \
  { observe<T, U, float>, observe<T, U, bf16>, observe<T, U, Absent> }
#define RAGRAD_OBSERVE_ANY(T)                                                                    \
  {                                                                                              \
    RAGRAD_OBSERVE(T, float), RAGRAD_OBSERVE(T, bf16), RAGRAD_OBSERVE(T, f16),                   \
        RAGRAD_OBSERVE(T, double), RAGRAD_OBSERVE(T, Absent)                                     \
  }

const Kernels RAGRAD_NAME(RAGRAD_ISA) = {
    RAGRAD_STRING(RAGRAD_ISA),
    {dots<float>, dots<bf16>, dots<f16>},
    {add_run<float>, add_run<bf16>, add_run<f16>},
    {RAGRAD_OBSERVE_ANY(float), RAGRAD_OBSERVE_ANY(bf16), RAGRAD_OBSERVE_ANY(f16)},
    {blend<float>, blend<bf16>, blend<f16>},
};

}  // namespace ragrad
