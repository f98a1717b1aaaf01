// As much of CUDA as csrc/cuda*.cuh use, on the host: enough to run the kernels without a device.
//
// A block is an OS thread, so that blocks really run beside each other. Its CUDA threads are fibers
// that take turns at barriers and warp operations. Blocks start late and pause at every atomic, at
// random, so that orders come up that a device shows rarely.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace shim {

struct Dim {
  unsigned x = 1;
};
extern bool slow_double;  // as on a chip made for graphics
extern thread_local Dim thread_index, block_index, grid_size;

void pause();  // at an atomic: let other blocks go first, or not
void spin();   // there is nothing to do: let other blocks go first
void block_barrier();
uint64_t warp_exchange(uint64_t mine, int from);  // the value of lane `from`
uint32_t warp_ballot(bool vote);

template <class To, class From>
To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

}  // namespace shim

// The language.
#define __global__
#define __device__
#define __grid_constant__
#define __launch_bounds__(...)
#define __shared__ static thread_local  // a block is an OS thread
#define threadIdx shim::thread_index
#define blockIdx shim::block_index
#define gridDim shim::grid_size

inline void __syncthreads() { shim::block_barrier(); }
inline void __nanosleep(unsigned) { shim::spin(); }
inline double __shfl_xor_sync(uint32_t, double x, int step) {
  const int lane = int(threadIdx.x % 32);
  return shim::bit_cast<double>(shim::warp_exchange(shim::bit_cast<uint64_t>(x), lane ^ step));
}
inline uint32_t __ballot_sync(uint32_t, bool vote) { return shim::warp_ballot(vote); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline float __uint_as_float(uint32_t x) { return shim::bit_cast<float>(x); }
inline uint32_t __float_as_uint(float x) { return shim::bit_cast<uint32_t>(x); }
inline _Float16 __ushort_as_half(uint16_t x) { return shim::bit_cast<_Float16>(x); }
inline uint16_t __half_as_ushort(_Float16 x) { return shim::bit_cast<uint16_t>(x); }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float __half2float(_Float16 x) { return float(x); }
inline _Float16 __float2half_rn(float x) { return _Float16(x); }
using std::isfinite;

// <cuda/atomic>
namespace cuda {
namespace std {
enum memory_order {
  memory_order_relaxed,
  memory_order_acquire,
  memory_order_release,
  memory_order_acq_rel
};
}  // namespace std
enum thread_scope { thread_scope_device };

template <class T, thread_scope>
class atomic_ref {
 public:
  explicit atomic_ref(T& place) : place_(&place) {}
  // The orders are spelt out: a compiler takes one that is not a constant for the strongest.
  T load(std::memory_order order) const {
    shim::pause();
    return order == std::memory_order_relaxed ? __atomic_load_n(place_, __ATOMIC_RELAXED)
                                              : __atomic_load_n(place_, __ATOMIC_ACQUIRE);
  }
  void store(T value, std::memory_order order) const {
    shim::pause();
    if (order == std::memory_order_relaxed) {
      __atomic_store_n(place_, value, __ATOMIC_RELAXED);
    } else {
      __atomic_store_n(place_, value, __ATOMIC_RELEASE);
    }
  }
  T fetch_add(T value, std::memory_order order) const {
    shim::pause();
    return order == std::memory_order_relaxed
               ? __atomic_fetch_add(place_, value, __ATOMIC_RELAXED)
               : __atomic_fetch_add(place_, value, __ATOMIC_ACQ_REL);
  }

 private:
  T* place_;
};
}  // namespace cuda

// The runtime. Memory is the host's, and device n runs n blocks at a time.
using cudaStream_t = void*;
using cudaError_t = int;
constexpr cudaError_t cudaSuccess = 0;
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount };
struct cudaFuncAttributes {};
struct dim3 {
  explicit dim3(unsigned x) : x(x) {}
  unsigned x;
};

namespace shim {
extern int current_device, launches;
extern unsigned seed;  // of the pauses
void run_grid(unsigned blocks, unsigned threads, void (*body)(const void*), const void* args);
}  // namespace shim

inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t) { return "no error"; }
inline cudaError_t cudaGetDeviceCount(int* count) { return *count = 1000, cudaSuccess; }
inline cudaError_t cudaGetDevice(int* device) {
  return *device = shim::current_device, cudaSuccess;
}
inline cudaError_t cudaSetDevice(int device) { return shim::current_device = device, cudaSuccess; }
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int device) {
  return *value = device, cudaSuccess;
}
template <class Kernel>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes*, Kernel) {
  return cudaSuccess;
}
template <class Kernel>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Kernel, int, size_t) {
  return *blocks = 1, cudaSuccess;
}

namespace shim {
template <class Args>
struct Call {
  void (*kernel)(Args);
  const Args* args;
  static void run(const void* call) {
    const auto* c = static_cast<const Call*>(call);
    c->kernel(*c->args);
  }
};
}  // namespace shim

template <class Args>
cudaError_t cudaLaunchKernel(void (*kernel)(Args), dim3 grid, dim3 block, void** args, size_t,
                             cudaStream_t) {
  const Args copy = *static_cast<const Args*>(args[0]);  // a launch keeps its arguments
  const shim::Call<Args> call{kernel, &copy};
  shim::run_grid(grid.x, block.x, &shim::Call<Args>::run, &call);
  ++shim::launches;
  return cudaSuccess;
}
