"""Triton: how blocks share the work of one launch.

Counters, int32, all zero between launches: the next ticket, blocks that found the queue empty; then
per layer or group of rows what a kernel's own documentation says.
"""

# mypy: allow-untyped-defs

import triton
import triton.language as tl

from . import queues

KINDS = tl.constexpr(queues.KINDS)


@triton.jit
def take_ticket(counters):
    return tl.atomic_add(counters, 1, sem="relaxed", scope="gpu")


@triton.jit
def read_ticket(queue, ticket):
    """Layer or group of rows, kind, and unit."""
    what = tl.load(queue + 2 * ticket.to(tl.int64))
    unit = tl.load(queue + 2 * ticket.to(tl.int64) + 1).to(tl.int64)
    return what // KINDS, what % KINDS, unit


@triton.jit
def last_to_arrive(arrived, units):
    """Whether this block is the last of ``units``; if so, it sees what the others wrote."""
    tl.debug_barrier()  # all threads of the block have written before one of them says so
    return tl.atomic_add(arrived, 1, sem="acq_rel", scope="gpu") == units - 1


@triton.jit
def publish(ready):
    """Every block that waits for ``ready`` sees what this block wrote before."""
    tl.debug_barrier()
    tl.atomic_xchg(ready, 1, sem="release", scope="gpu")


@triton.jit
def wait_for(ready):
    while tl.atomic_add(ready, 0, sem="acquire", scope="gpu") == 0:
        pass


@triton.jit
def leave(counters, words):
    """The last block to leave zeroes the counters: no other block touches them any more."""
    left = tl.atomic_add(counters + 1, 1, sem="acq_rel", scope="gpu")
    if left == tl.num_programs(0) - 1:
        for at in range(0, words, 1024):
            word = at + tl.arange(0, 1024)
            tl.store(counters + word, tl.full((1024,), 0, tl.int32), mask=word < words)
