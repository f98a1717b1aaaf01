// Vectors of the widest instruction set that the including file is compiled for.
//
// Plain GCC/Clang vectors, but for what GCC splits into halves and joins again: conversions between
// widths. Intrinsics say those in one instruction (GCC 12 warns of the AVX-512 ones without a
// mask).
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace ragrad {
namespace {

#if defined(__AVX512F__)
constexpr int kWidth = 8;
#elif defined(__AVX2__)
constexpr int kWidth = 4;
#else
constexpr int kWidth = 2;
#endif

typedef double Doubles __attribute__((vector_size(8 * kWidth)));
typedef float Floats __attribute__((vector_size(4 * kWidth)));
typedef uint32_t Words __attribute__((vector_size(4 * kWidth)));
typedef uint16_t Halves __attribute__((vector_size(2 * kWidth)));

template <class Vector, class T>
inline Vector load(const T* p) {
  Vector v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

template <class Vector, class T>
inline void store(T* p, Vector v) {
  std::memcpy(p, &v, sizeof v);
}

template <class To, class From>
inline To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

#if defined(__AVX512F__)
inline Doubles widen(Floats x) { return Doubles(_mm512_maskz_cvtps_pd(0xff, __m256(x))); }
inline Floats narrow(Doubles x) { return Floats(_mm512_maskz_cvtpd_ps(0xff, __m512d(x))); }
inline Words widen(Halves x) { return Words(_mm256_cvtepu16_epi32(__m128i(x))); }
inline Halves narrow(Words x) { return Halves(_mm256_cvtepi32_epi16(__m256i(x))); }
#elif defined(__AVX2__)
inline Doubles widen(Floats x) { return Doubles(_mm256_cvtps_pd(__m128(x))); }
inline Floats narrow(Doubles x) { return Floats(_mm256_cvtpd_ps(__m256d(x))); }
inline Words widen(Halves x) {
  return Words(_mm_cvtepu16_epi32(_mm_cvtsi64_si128(bit_cast<int64_t>(x))));
}
inline Halves narrow(Words x) {
  return bit_cast<Halves>(_mm_cvtsi128_si64(_mm_packus_epi32(__m128i(x), __m128i(x))));
}
#else
inline Doubles widen(Floats x) { return __builtin_convertvector(x, Doubles); }
inline Floats narrow(Doubles x) { return __builtin_convertvector(x, Floats); }
inline Words widen(Halves x) { return __builtin_convertvector(x, Words); }
inline Halves narrow(Words x) { return __builtin_convertvector(x, Halves); }
#endif

// float16 to float32, exactly, and back, rounded to nearest even. The range of float16 is for the
// caller to keep.
#if defined(__AVX512F__)
inline Floats from_half(Halves x) { return Floats(_mm256_cvtph_ps(__m128i(x))); }
inline Halves to_half(Floats x) { return Halves(_mm256_cvtps_ph(__m256(x), 0)); }
#elif defined(__AVX2__)
inline Floats from_half(Halves x) {
  return Floats(_mm_cvtph_ps(_mm_cvtsi64_si128(bit_cast<int64_t>(x))));
}
inline Halves to_half(Floats x) {
  return bit_cast<Halves>(_mm_cvtsi128_si64(_mm_cvtps_ph(__m128(x), 0)));
}
#else
inline Floats from_half(Halves x) {
  const Words half = widen(x);
  const Words sign = (half & 0x8000u) << 16, magnitude = half & 0x7fffu;
  const Words normal = (magnitude << 13) + (112u << 23);
  const Words special = (magnitude << 13) | 0x7f800000u;
  // a subnormal is a whole number of 2^-24
  const Words subnormal = bit_cast<Words>(__builtin_convertvector(magnitude, Floats) * 0x1p-24f);
  const Words bits = magnitude >= 0x7c00u ? special : magnitude < 0x400u ? subnormal : normal;
  return bit_cast<Floats>(bits | sign);
}
inline Halves to_half(Floats x) {
  const Words bits = bit_cast<Words>(x);
  const Words sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7fffffffu;
  const Words normal = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  // Below 2^-14: adding 1/2 leaves the multiple of 2^-24 in the lowest bits, rounded to even.
  const Words subnormal =
      bit_cast<Words>(bit_cast<Floats>(magnitude) + 0.5f) - bit_cast<Words>(Floats{} + 0.5f);
  return narrow((magnitude < (113u << 23) ? subnormal : normal) | sign);
}
#endif

// The lesser and the greater of each lane.
#if defined(__AVX512F__)
inline Floats least(Floats x, Floats y) { return Floats(_mm256_min_ps(__m256(x), __m256(y))); }
inline Floats most(Floats x, Floats y) { return Floats(_mm256_max_ps(__m256(x), __m256(y))); }
#elif defined(__AVX2__)
inline Floats least(Floats x, Floats y) { return Floats(_mm_min_ps(__m128(x), __m128(y))); }
inline Floats most(Floats x, Floats y) { return Floats(_mm_max_ps(__m128(x), __m128(y))); }
#else
inline Floats least(Floats x, Floats y) { return x < y ? x : y; }
inline Floats most(Floats x, Floats y) { return x > y ? x : y; }
#endif

// sum + x y where the product is exact in double: the same bits with or without an FMA.
inline Doubles add_exact_product(Doubles sum, Doubles x, Doubles y) {
#if defined(__AVX512F__)
  return Doubles(_mm512_fmadd_pd(__m512d(x), __m512d(y), __m512d(sum)));
#elif defined(__FMA__)
  return Doubles(_mm256_fmadd_pd(__m256d(x), __m256d(y), __m256d(sum)));
#else
  return sum + x * y;
#endif
}

// All lanes of a vector: each with the one half a vector away, until one is left.
inline double add_up(Doubles x) {
#if defined(__AVX512F__)
  return ((x[0] + x[4]) + (x[2] + x[6])) + ((x[1] + x[5]) + (x[3] + x[7]));
#elif defined(__AVX2__)
  return (x[0] + x[2]) + (x[1] + x[3]);
#else
  return x[0] + x[1];
#endif
}

}  // namespace
}  // namespace ragrad
