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

// Calls body(p...) for every block of 16 elements; the last one is padded with zeros, and what
// body writes there is copied back. Zeros add nothing to any sum.
template <class A, class B, class Body>
inline void blocks(A* a, B* b, int64_t n, Body body) {
  using PlainA = std::remove_const_t<A>;
  using PlainB = std::remove_const_t<B>;
  int64_t j = 0;
  for (; j + kLanes <= n; j += kLanes) body(a + j, b + j);
  const size_t rest = size_t(n - j);
  if (rest == 0) return;
  PlainA tail_a[kLanes] = {};
  PlainB tail_b[kLanes] = {};
  std::memcpy(tail_a, a + j, rest * sizeof(A));
  std::memcpy(tail_b, b + j, rest * sizeof(B));
  body(static_cast<A*>(tail_a), static_cast<B*>(tail_b));
  if constexpr (!std::is_const_v<A>) std::memcpy(a + j, tail_a, rest * sizeof(A));
  if constexpr (!std::is_const_v<B>) std::memcpy(b + j, tail_b, rest * sizeof(B));
}

// One sum in registers: read from memory when made, written back when it goes.
struct Sum {
  explicit Sum(double* lanes) : lanes(lanes) {
    for (int v = 0; v < kVectors; ++v) part[v] = load<Doubles>(lanes + v * kWidth);
  }
  ~Sum() { std::memcpy(lanes, part, sizeof part); }
  double* lanes;
  Doubles part[kVectors];
};

template <class T>
void dots(const void* a, const void* b, int64_t n, double* acc) {
  Sum rgb(acc), ir(acc + kLanes), both(acc + 2 * kLanes);
  blocks(static_cast<const T*>(a), static_cast<const T*>(b), n, [&](const T* a, const T* b) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      const Doubles x = read(a + v * kWidth), y = read(b + v * kWidth);
      rgb.part[v] = add_exact_product(rgb.part[v], x, x);
      ir.part[v] = add_exact_product(ir.part[v], y, y);
      both.part[v] = add_exact_product(both.part[v], x, y);
    }
  });
}

template <class T, class U>
void weigh(const void* g, const void* theta, int64_t n, double* acc) {
  Sum sum(acc);
  blocks(static_cast<const T*>(g), static_cast<const U*>(theta), n, [&](const T* g, const U* t) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      sum.part[v] += read(g + v * kWidth) * read(t + v * kWidth);
    }
  });
}

template <class T, class U>
void remember(const void* g, void* mu, int64_t n, double w, double* acc) {
  Sum sum(acc);
  blocks(static_cast<const T*>(g), static_cast<U*>(mu), n, [&](const T* g, U* mu) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      const Doubles x = read(g + v * kWidth), m = read(mu + v * kWidth);
      const Doubles d = x - m;
      sum.part[v] += d * d;
      write(mu + v * kWidth, x - x == 0.0 ? m + w * d : m);  // inf - inf and nan - nan are nan
    }
  });
}

template <class T>
void blend(void* weak, const void* strong, int64_t n, double p, double q) {
  blocks(static_cast<T*>(weak), static_cast<const T*>(strong), n, [&](T* weak, const T* strong) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      T* place = weak + v * kWidth;
      write(place, clamp<T>(p * read(place) + q * read(strong + v * kWidth)));
    }
  });
}

}  // namespace

#define RAGRAD_JOIN(a, b) a##b
#define RAGRAD_NAME(isa) RAGRAD_JOIN(kernels_, isa)
#define RAGRAD_QUOTE(x) #x
#define RAGRAD_STRING(x) RAGRAD_QUOTE(x)

const Kernels RAGRAD_NAME(RAGRAD_ISA) = {
    RAGRAD_STRING(RAGRAD_ISA),
    {dots<float>, dots<bf16>, dots<f16>},
    {{weigh<float, float>, weigh<float, bf16>, weigh<float, f16>, weigh<float, double>},
     {weigh<bf16, float>, weigh<bf16, bf16>, weigh<bf16, f16>, weigh<bf16, double>},
     {weigh<f16, float>, weigh<f16, bf16>, weigh<f16, f16>, weigh<f16, double>}},
    {{remember<float, float>, remember<float, bf16>},
     {remember<bf16, float>, remember<bf16, bf16>},
     {remember<f16, float>, remember<f16, bf16>}},
    {blend<float>, blend<bf16>, blend<f16>},
};

}  // namespace ragrad
