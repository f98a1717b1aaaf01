"""Triton: tickets, pieces of rows, and where their elements lie."""

# mypy: allow-untyped-defs

import triton
import triton.language as tl

from . import plan

COLUMNS = tl.constexpr(plan.COLUMNS)
FIRST_ROW = tl.constexpr(plan.FIRST_ROW)
CHANNELS = tl.constexpr(plan.CHANNELS)
ROW_SIZE = tl.constexpr(plan.ROW_SIZE)
PIECES = tl.constexpr(plan.PIECES)
PIECE_SIZE = tl.constexpr(plan.PIECE_SIZE)
UNIT_PIECES = tl.constexpr(plan.UNIT_PIECES)
UNITS = tl.constexpr(plan.UNITS)
PARTS = tl.constexpr(plan.PARTS)
SHAPE = tl.constexpr(plan.SHAPE)
EVEN = tl.constexpr(plan.EVEN)
NDIM = tl.constexpr(plan.NDIM)
STRIDE = tl.constexpr(plan.STRIDE)
SIZES = tl.constexpr(plan.SIZES)
STRIDES = tl.constexpr(plan.STRIDES)
MAX_DIMS = tl.constexpr(plan.MAX_DIMS)
KINDS = tl.constexpr(plan.KINDS)


# Counters, int32, all zero between launches: the next ticket, blocks that found the queue empty,
# then per layer: units that were summed, and whether it is settled.


@triton.jit
def take_ticket(counters):
    return tl.atomic_add(counters, 1, sem="relaxed", scope="gpu")


@triton.jit
def last_to_arrive(arrived, units):
    """Whether this block is the last of ``units``; if so, it sees what the others wrote."""
    tl.debug_barrier()  # all threads of the block have written, before one of them says so
    return tl.atomic_add(arrived, 1, sem="acq_rel", scope="gpu") == units - 1


@triton.jit
def publish(ready):
    """What the block wrote before is seen by every block that waits for ``ready``."""
    tl.debug_barrier()
    tl.atomic_xchg(ready, 1, sem="release", scope="gpu")


@triton.jit
def wait_for(ready):
    while tl.atomic_add(ready, 0, sem="acquire", scope="gpu") == 0:
        pass


@triton.jit
def leave(counters, words):
    """The last block to leave zeroes the counters: no other one touches them any more."""
    left = tl.atomic_add(counters + 1, 1, sem="acq_rel", scope="gpu")
    if left == tl.num_programs(0) - 1:
        for at in range(0, words, 1024):
            word = at + tl.arange(0, 1024)
            tl.store(counters + word, tl.full((1024,), 0, tl.int32), mask=word < words)


@triton.jit
def part_of_row(line, index):
    """Which part of which row: piece (N,) -> row, first element and end, (N,) int64."""
    pieces, size = tl.load(line + PIECES), tl.load(line + PIECE_SIZE)
    row = index // pieces
    first = (index - row * pieces) * size
    return row, first, tl.minimum(first + size, tl.load(line + ROW_SIZE))


@triton.jit
def run_of(line, address, operand: tl.constexpr, row, first, DTYPE: tl.constexpr, V: tl.constexpr):
    """Pointers (N,) to where pieces of rows begin, for rows that are runs."""
    return in_vectors(address, row * tl.load(line + STRIDE + operand) + first, DTYPE, V)


@triton.jit
def in_vectors(address, offset, DTYPE: tl.constexpr, V: tl.constexpr):
    """Pointers (N,) to ``offset`` (N,), both known to be multiples of V elements."""
    BYTES: tl.constexpr = DTYPE.primitive_bitwidth // 8
    start = address + offset * BYTES
    if V > 1:  # it changes no value, and a value of its own can carry what the compiler is told
        start = start // (V * BYTES) * (V * BYTES)
        return tl.multiple_of(start.to(tl.pointer_type(DTYPE)), V * BYTES)
    else:
        return start.to(tl.pointer_type(DTYPE))


@triton.jit
def walk_to(line, operand: tl.constexpr, row, j):
    """Offsets of the elements j (N, M) of rows (N,) that are no runs, in elements."""
    at = row[:, None] * tl.load(line + STRIDE + operand) + 0 * j
    ndim = tl.load(line + NDIM)
    for back in range(0, ndim):
        d = ndim - 1 - back
        outer = j // tl.load(line + SIZES + d)
        inner = j - outer * tl.load(line + SIZES + d)
        at += inner * tl.load(line + STRIDES + operand * MAX_DIMS + d)
        j = outer
    return at


@triton.jit
def add_products(acc, x, y, V: tl.constexpr):
    """acc (N, M / V) float64 plus x * y, (N, M) float64, summed over every V neighbours."""
    product = x * y
    if V > 1:
        N: tl.constexpr = x.shape[0]
        M: tl.constexpr = x.shape[1]
        product = tl.sum(tl.reshape(product, (N, M // V, V)), 2)
    return acc + product


# A function of its own (noinline) keeps its registers to itself; it takes scalars only.
@triton.jit(noinline=True)
def add_parts(line, parts, out, step, SUMS: tl.constexpr, N: tl.constexpr, M: tl.constexpr):
    """One of the SUMS of every row in several pieces, N rows and M pieces at a time.

    In a fixed order. ``parts`` and ``out`` point to that sum of the layer's first piece and row;
    from row to row, the result moves on by ``step``.
    """
    channels, pieces = tl.load(line + CHANNELS), tl.load(line + PIECES)
    for begin in range(0, channels, N):
        row = begin + tl.arange(0, N)
        acc = tl.full((N, M), 0, tl.float64)
        for start in range(0, pieces, M):
            piece = start + tl.arange(0, M)[None, :]
            there = (row < channels)[:, None] & (piece < pieces)
            at = parts + (row[:, None] * pieces + piece) * SUMS
            acc += tl.load(at, mask=there, other=0, cache_modifier=".cg")
        tl.store(out + row * step, tl.sum(acc, 1), mask=row < channels)


@triton.jit
def add_all_parts(line, parts, out, step, SUMS: tl.constexpr):
    """All SUMS of rows in several pieces, visible to the whole block."""
    if tl.load(line + PIECES) <= 16:
        for i in range(SUMS):
            add_parts(line, parts + i, out + i, step, SUMS, 128, 8)
    else:
        for i in range(SUMS):
            add_parts(line, parts + i, out + i, step, SUMS, 4, 256)
    tl.debug_barrier()


@triton.jit(do_not_specialize=["first", "addresses"])
def point(table, first: tl.int64, addresses, N: tl.constexpr):
    """Write N addresses, given by value, into a pointer table."""
    for i in tl.static_range(N):
        tl.store(table + first + i, addresses[i])
