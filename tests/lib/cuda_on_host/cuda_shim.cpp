// Fibers and blocks for cuda_shim.h.
#include "cuda_shim.h"

#include <ucontext.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#ifdef __SANITIZE_THREAD__  // every fiber counts as a thread of its own
#include <sanitizer/tsan_interface.h>
#else
inline void* __tsan_get_current_fiber() { return nullptr; }
inline void* __tsan_create_fiber(unsigned) { return nullptr; }
inline void __tsan_destroy_fiber(void*) {}
inline void __tsan_switch_to_fiber(void*, unsigned) {}
#endif

namespace shim {

int current_device = 0, launches = 0;
unsigned seed = 0;
bool slow_double = false;
thread_local Dim thread_index, block_index, grid_size;

namespace {

// The fibers' own bookkeeping is no business of the sanitizer.
#define UNWATCHED __attribute__((noinline, no_sanitize("thread")))

constexpr size_t kStack = 512 << 10;  // touched only as far as it is used
constexpr long kMostSpins = 20'000'000;  // then it counts as a deadlock

// Where n fibers meet. A fiber that arrives sees what the others wrote before.
struct Barrier {
  unsigned members = 0;
  std::atomic<unsigned> arrived{0}, generation{0};
};

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[kStack]};
  void* tsan = nullptr;
  bool started = false, done = false;
  unsigned turns = 0;  // of warp exchanges
};

struct Block {
  std::vector<Fiber> fibers;
  std::vector<Barrier> warps;
  std::vector<uint64_t> posted[2];  // by turn: what was read in one is overwritten two turns later
  Barrier all;
  ucontext_t outside;
  void* outside_tsan = nullptr;
  std::minstd_rand random;
  std::atomic<long> spins{0};         // since a barrier last opened
  std::atomic<unsigned> finished{0};  // fibers; whoever reads it sees what they did
  void (*body)(const void*);
  const void* args;
};
thread_local Block* block;

UNWATCHED void switch_to(unsigned next) {
  const unsigned mine = thread_index.x;
  Fiber& fiber = block->fibers[next];
  thread_index.x = next;
  __tsan_switch_to_fiber(fiber.tsan, fiber.started ? 1 : 0);  // 1: the switch orders nothing
  fiber.started = true;
  swapcontext(&block->fibers[mine].context, &fiber.context);
}

// The next fiber that is not done; nothing if there is none but this.
UNWATCHED void yield() {
  const unsigned n = unsigned(block->fibers.size()), mine = thread_index.x;
  for (unsigned k = 1; k < n; ++k) {
    const unsigned next = (mine + k) % n;
    if (!block->fibers[next].done) return switch_to(next);
  }
}

void meet(Barrier& barrier) {
  const unsigned generation = barrier.generation.load();
  if (barrier.arrived.fetch_add(1) == barrier.members - 1) {
    barrier.arrived = 0;
    block->spins = 0;
    ++barrier.generation;
    return;
  }
  while (barrier.generation.load() == generation) {
    if (++block->spins > kMostSpins) {
      std::fputs("deadlock: a barrier that some threads never reach\n", stderr);
      std::abort();
    }
    yield();
  }
}

void run() {
  block->body(block->args);
  ++block->finished;
}

UNWATCHED void enter() {
  run();
  block->fibers[thread_index.x].done = true;
  yield();
  __tsan_switch_to_fiber(block->outside_tsan, 1);
  setcontext(&block->outside);  // the last one
}

// Posts a value for the warp; what all of its lanes posted.
const uint64_t* post(uint64_t mine) {
  Fiber& fiber = block->fibers[thread_index.x];
  auto& posted = block->posted[fiber.turns++ % 2];
  posted[thread_index.x] = mine;
  meet(block->warps[thread_index.x / 32]);
  return &posted[thread_index.x / 32 * 32];
}

}  // namespace

void pause() {
  const auto dice = block->random() % 8;
  if (dice == 0) std::this_thread::sleep_for(std::chrono::microseconds(block->random() % 50));
  if (dice < 3) std::this_thread::yield();
}

void spin() {
  if (++block->spins > kMostSpins) {
    std::fputs("deadlock: a block waits for what never comes\n", stderr);
    std::abort();
  }
  std::this_thread::yield();
}

void block_barrier() { meet(block->all); }

uint64_t warp_exchange(uint64_t mine, int from) { return post(mine)[from]; }

uint32_t warp_ballot(bool vote) {
  const uint64_t* votes = post(vote);
  uint32_t bits = 0;
  for (int lane = 0; lane < 32; ++lane) bits |= uint32_t(votes[lane]) << lane;
  return bits;
}

void run_block(unsigned index, unsigned blocks, unsigned threads, void (*body)(const void*),
               const void* args) {
  Block mine;
  block = &mine;
  mine.random.seed(seed * 1000003u + index + 1);
  mine.body = body;
  mine.args = args;
  mine.fibers = std::vector<Fiber>(threads);
  mine.warps = std::vector<Barrier>(threads / 32);
  for (auto& posted : mine.posted) posted.resize(threads);
  for (Barrier& warp : mine.warps) warp.members = 32;
  mine.all.members = threads;
  block_index.x = index;
  grid_size.x = blocks;
  mine.outside_tsan = __tsan_get_current_fiber();
  for (Fiber& fiber : mine.fibers) {
    fiber.tsan = __tsan_create_fiber(0);
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStack;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, enter, 0);
  }
  if (seed % 2 == 1) std::this_thread::sleep_for(std::chrono::microseconds(mine.random() % 3000));
  thread_index.x = 0;
  mine.fibers[0].started = true;
  __tsan_switch_to_fiber(mine.fibers[0].tsan, 0);
  swapcontext(&mine.outside, &mine.fibers[0].context);
  if (mine.finished != threads) std::abort();
  for (Fiber& fiber : mine.fibers) __tsan_destroy_fiber(fiber.tsan);
}

void run_grid(unsigned blocks, unsigned threads, void (*body)(const void*), const void* args) {
  std::vector<std::thread> running;
  for (unsigned b = 0; b < blocks; ++b) {
    running.emplace_back(run_block, b, blocks, threads, body, args);
  }
  for (auto& thread : running) thread.join();
}

}  // namespace shim
