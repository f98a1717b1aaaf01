// How blocks of one launch wait for each other.
//
// Units are handed out by tickets, in the order of the queue. A block waits only for units with
// lower tickets; blocks that run hold these, and the lowest one unfinished waits for nothing. So
// all of them finish, whatever the number of blocks that the device runs at a time.
#pragma once

#include "cuda_args.h"

#ifdef __CUDACC__
#include <cuda/atomic>
#else
#include "cuda_shim.h"
#endif

namespace ragrad::cuda {

using Counter = ::cuda::atomic_ref<uint32_t, ::cuda::thread_scope_device>;

__device__ inline uint32_t take_ticket(const Counters& counters) {
  __shared__ uint32_t ticket;
  __syncthreads();  // everybody has read the last one
  if (threadIdx.x == 0) {
    ticket = Counter(*counters.ticket).fetch_add(1, ::cuda::std::memory_order_relaxed);
  }
  __syncthreads();
  return ticket;
}

// Whether this block is the last of the layer's units to come here. If so, it sees all that the
// other ones wrote before they came. The counter is zero again at once: nobody else will come.
template <int kOps>
__device__ inline bool last_to_arrive(const Counters& counters, const LayerArgs<kOps>& layer) {
  __shared__ bool last;
  __syncthreads();
  if (threadIdx.x == 0) {
    Counter arrived(counters.arrived[layer.slot]);
    last = arrived.fetch_add(1, ::cuda::std::memory_order_acq_rel) == layer.units - 1;
    if (last) arrived.store(0, ::cuda::std::memory_order_relaxed);
  }
  __syncthreads();
  return last;
}

// What the block wrote before is seen by every block that waited for it.
__device__ inline void publish(uint32_t& ready) {
  __syncthreads();
  if (threadIdx.x == 0) Counter(ready).store(1, ::cuda::std::memory_order_release);
}

__device__ inline void wait_for(uint32_t& ready) {
  if (threadIdx.x == 0) {
    while (Counter(ready).load(::cuda::std::memory_order_acquire) == 0) __nanosleep(100);
  }
  __syncthreads();
}

// Called once by every block that found the queue empty. The last one zeroes the counters: no other
// block of this launch touches them any more, and the next launch on the stream starts after it.
template <class Args>
__device__ inline void leave(const Args& args, bool flags) {
  if (threadIdx.x != 0) return;
  const Counters& counters = args.counters;
  const uint32_t before = Counter(*counters.left).fetch_add(1, ::cuda::std::memory_order_acq_rel);
  if (before != gridDim.x - 1) return;
  *counters.left = 0;
  *counters.ticket = 0;
  for (int l = 0; flags && l < args.layers; ++l) counters.ready[args.layer[l].slot] = 0;
}

}  // namespace ragrad::cuda
