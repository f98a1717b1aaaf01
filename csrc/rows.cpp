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
  return widen(from_half(load<Halves>(p)));
}

// Rounded to nearest even. Out of range is for the caller to avoid.
template <class T>
inline void write(T* p, Floats x);

template <>
inline void write(float* p, Floats x) {
  store(p, x);
}

inline Words rounded_to_bf16(Floats x) {  // in the upper half of each word
  const Words bits = bit_cast<Words>(x);
  return bits + 0x7fffu + ((bits >> 16) & 1u);
}

template <>
inline void write(bf16* p, Floats x) {
  store(p, narrow(rounded_to_bf16(x) >> 16));
}

template <>
inline void write(f16* p, Floats x) {
  store(p, to_half(x));
}

// The same of two vectors that stand half of the 16 lanes apart: numbers v and v + kVectors / 2.
struct Pair {
  Doubles first, second;
};
constexpr int kApart = kLanes / 2;

template <class T>
inline Pair read_pair(const T* run, int v) {
  const T* const p = run + v * kWidth;
  return {read(p), read(p + kApart)};
}

template <class T>
inline void write_pair(T* run, int v, Floats first, Floats second) {
  T* const p = run + v * kWidth;
  write(p, first);
  write(p + kApart, second);
}

// Two neighbours share a word, and one operation takes either out of all words of a vector: the
// even elements of 16 make the first eight lanes, the odd ones the others.
constexpr uint32_t kOdd = 0xffff0000u;

template <>
inline Pair read_pair(const bf16* run, int v) {
  const Words both = load<Words>(run + 2 * v * kWidth);
  return {widen(bit_cast<Floats>(both << 16)), widen(bit_cast<Floats>(both & kOdd))};
}

template <>
inline void write_pair(bf16* run, int v, Floats even, Floats odd) {
  store(run + 2 * v * kWidth, (rounded_to_bf16(even) >> 16) | (rounded_to_bf16(odd) & kOdd));
}

template <class T>
constexpr float largest() = delete;
template <>
constexpr float largest<float>() {
  return std::numeric_limits<float>::max();
}
template <>
constexpr float largest<bf16>() {
  return 0x1.fep127f;
}
template <>
constexpr float largest<f16>() {
  return 65504.0f;
}

// What is beyond the range of T saturates: a correction makes no inf of finite gradients.
template <class T>
inline Floats saturate(Doubles x) {
  const Floats top = Floats{} + largest<T>();
  return most(-top, least(top, narrow(x)));
}

// Streams are more than the hardware prefetches well across the ends of pages, hence by hand. A
// prefetch never faults, and after the end of a row comes the next.
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
[[gnu::always_inline]] inline void add_gram(const T* a, const T* b, int64_t blocks,
                                            Doubles (&sum)[kGram][kVectors]) {
  for (int64_t j = 0; j < blocks * kLanes; j += kLanes) {
    if (sizeof(T) == 4 || j % (2 * kLanes) == 0) {  // once a cache line
      prefetch<false, T>(a, j);
      prefetch<false, T>(b, j);
    }
#pragma GCC unroll 8
    for (int v = 0; v < kVectors / 2; ++v) {
      const Pair x = read_pair(a + j, v), y = read_pair(b + j, v);
      const int w = v + kVectors / 2;
      sum[0][v] = add_exact_product(sum[0][v], x.first, x.first);
      sum[0][w] = add_exact_product(sum[0][w], x.second, x.second);
      sum[1][v] = add_exact_product(sum[1][v], y.first, y.first);
      sum[1][w] = add_exact_product(sum[1][w], y.second, y.second);
      sum[2][v] = add_exact_product(sum[2][v], x.first, y.first);
      sum[2][w] = add_exact_product(sum[2][w], x.second, y.second);
    }
  }
}

template <class T>
[[gnu::always_inline]] inline void add_all_gram(const T* a, const T* b, int64_t n,
                                                Doubles (&sum)[kGram][kVectors]) {
  add_gram(a, b, n / kLanes, sum);
  const size_t rest = size_t(n % kLanes);
  if (rest == 0) return;
  T tail_a[kLanes] = {}, tail_b[kLanes] = {};  // zeros add nothing to any sum
  std::memcpy(tail_a, a + n - rest, rest * sizeof(T));
  std::memcpy(tail_b, b + n - rest, rest * sizeof(T));
  add_gram<T>(tail_a, tail_b, 1, sum);
}

double fold_lanes(const double* lanes) {
  Doubles sum[kVectors];
  std::memcpy(sum, lanes, sizeof sum);
  return fold(sum);
}

template <class T>
void add_run(const void* a, const void* b, int64_t n, double* acc) {
  Doubles sum[kGram][kVectors];
  std::memcpy(sum, acc, sizeof sum);
  add_all_gram(static_cast<const T*>(a), static_cast<const T*>(b), n, sum);
  std::memcpy(acc, sum, sizeof sum);
}

template <class T>
void gram(const void* a, const void* b, int64_t n, double* out) {
  Doubles sum[kGram][kVectors] = {};
  add_all_gram(static_cast<const T*>(a), static_cast<const T*>(b), n, sum);
  for (int s = 0; s < kGram; ++s) out[s] = fold(sum[s]);
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
          sum[kGram + m][v] += g[m] * read(static_cast<const U*>(run.theta[m]) + at);
        }
        if constexpr (!std::is_same_v<M, Absent>) {
          M* const place = static_cast<M*>(run.mu[m]) + at;
          const Doubles mu = read(place), d = g[m] - mu;
          sum[kGram + 2 + m][v] += d * d;
          write(place,
                narrow(g[m] - g[m] == 0.0 ? mu + w[m] * d : mu));  // inf - inf, nan - nan are nan
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
[[gnu::always_inline]] inline void mix_one_blocks(T* own, const T* other, int64_t blocks, double p,
                                                  double q) {
  for (int64_t j = 0; j < blocks * kLanes; j += kLanes) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors / 2; ++v) {
      const Pair x = read_pair(own + j, v), y = read_pair(other + j, v);
      write_pair(own + j, v, saturate<T>(p * x.first + q * y.first),
                 saturate<T>(p * x.second + q * y.second));
    }
  }
}

template <class T>
void mix_one(void* own, const void* other, int64_t n, double p, double q) {
  T* const x = static_cast<T*>(own);
  const T* const y = static_cast<const T*>(other);
  mix_one_blocks(x, y, n / kLanes, p, q);
  const size_t rest = size_t(n % kLanes);
  if (rest == 0) return;
  T tail_x[kLanes] = {}, tail_y[kLanes] = {};
  std::memcpy(tail_x, x + n - rest, rest * sizeof(T));
  std::memcpy(tail_y, y + n - rest, rest * sizeof(T));
  mix_one_blocks<T>(tail_x, tail_y, 1, p, q);
  std::memcpy(x + n - rest, tail_x, rest * sizeof(T));
}

template <class T>
[[gnu::always_inline]] inline void mix_both_blocks(T* rgb, T* ir, int64_t blocks, double m0,
                                                   double m1, double m2, double m3) {
  for (int64_t j = 0; j < blocks * kLanes; j += kLanes) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors / 2; ++v) {
      const Pair x = read_pair(rgb + j, v), y = read_pair(ir + j, v);
      write_pair(rgb + j, v, saturate<T>(m0 * x.first + m1 * y.first),
                 saturate<T>(m0 * x.second + m1 * y.second));
      write_pair(ir + j, v, saturate<T>(m2 * x.first + m3 * y.first),
                 saturate<T>(m2 * x.second + m3 * y.second));
    }
  }
}

template <class T>
void mix_both(void* rgb, void* ir, int64_t n, const double* m) {
  T* const x = static_cast<T*>(rgb);
  T* const y = static_cast<T*>(ir);
  mix_both_blocks(x, y, n / kLanes, m[0], m[1], m[2], m[3]);
  const size_t rest = size_t(n % kLanes);
  if (rest == 0) return;
  T tail_x[kLanes] = {}, tail_y[kLanes] = {};
  std::memcpy(tail_x, x + n - rest, rest * sizeof(T));
  std::memcpy(tail_y, y + n - rest, rest * sizeof(T));
  mix_both_blocks<T>(tail_x, tail_y, 1, m[0], m[1], m[2], m[3]);
  std::memcpy(x + n - rest, tail_x, rest * sizeof(T));
  std::memcpy(y + n - rest, tail_y, rest * sizeof(T));
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
    fold_lanes,
    {gram<float>, gram<bf16>, gram<f16>},
    {add_run<float>, add_run<bf16>, add_run<f16>},
    {RAGRAD_OBSERVE_ANY(float), RAGRAD_OBSERVE_ANY(bf16), RAGRAD_OBSERVE_ANY(f16)},
    {mix_one<float>, mix_one<bf16>, mix_one<f16>},
    {mix_both<float>, mix_both<bf16>, mix_both<f16>},
};

}  // namespace ragrad
