// Threads of our own would fight for the cores with PyTorch's: those spin for milliseconds after
// every operator, waiting for the next one. So the work goes to them, through the entry that every
// OpenMP runtime of GCC's kind has, looked up among what the process has loaded. Nothing is linked,
// and where there is no such runtime, threads are started for the call.
#include "team.h"

#include <dlfcn.h>

#include <system_error>
#include <thread>
#include <vector>

namespace ragrad::cpu {

namespace {

// Runs work(data) on every thread of a team; GCC compiles `#pragma omp parallel` to this.
using Parallel = void (*)(void (*work)(void*), void* data, unsigned threads, unsigned flags);

Parallel openmp() {
#ifdef __SANITIZE_THREAD__
  return nullptr;  // its barriers are not instrumented: every hand-over would look like a race
#else
  return reinterpret_cast<Parallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
#endif
}

}  // namespace

void on_threads(int threads, void (*work)(void*), void* data) {
  if (threads <= 1) return work(data);
  static const Parallel parallel = openmp();
  if (parallel) return parallel(work, data, unsigned(threads), 0);
  std::vector<std::thread> helpers;
  for (int i = 1; i < threads; ++i) {
    try {
      helpers.emplace_back(work, data);
    } catch (const std::system_error&) {
      break;  // no more threads to be had
    }
  }
  work(data);
  for (auto& helper : helpers) helper.join();
}

}  // namespace ragrad::cpu
