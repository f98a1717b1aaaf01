"""Triton: tiles of rows and of pieces of rows, and where their elements are."""

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
HEIGHT = tl.constexpr(plan.HEIGHT)
EVEN = tl.constexpr(plan.EVEN)
NDIM = tl.constexpr(plan.NDIM)
STRIDE = tl.constexpr(plan.STRIDE)
SIZES = tl.constexpr(plan.SIZES)
STRIDES = tl.constexpr(plan.STRIDES)
MAX_DIMS = tl.constexpr(plan.MAX_DIMS)
HIGH = tl.constexpr(plan.HEIGHTS[0])
MIDDLE = tl.constexpr(plan.HEIGHTS[1])
FLAT = tl.constexpr(plan.HEIGHTS[2])


@triton.jit
def for_tiles(
    WORK: tl.constexpr, line, begin, end, step, even, args,
    WALK: tl.constexpr, V: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Calls ``WORK(line, at, args, WALK, V, N, M)`` for the tiles at every ``step``-th piece.

    WORK is compiled once for each height of tiles, in whole vectors and not; ``even`` chooses.
    """
    if WALK:
        for_tiles_of_any_height(WORK, line, begin, end, step, args, 1, 1, TILE // V)
    elif even:
        for_tiles_of_any_height(WORK, line, begin, end, step, args, 0, V, TILE)
    else:
        for_tiles_of_any_height(WORK, line, begin, end, step, args, 0, 1, TILE // V)


@triton.jit
def for_tiles_of_any_height(
    WORK: tl.constexpr, line, begin, end, step, args,
    WALK: tl.constexpr, V: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    height = tl.load(line + HEIGHT)
    if height == HIGH:
        for at in range(begin, end, step):
            WORK(line, at, args, WALK, V, HIGH, TILE // HIGH)
    elif height == MIDDLE:
        for at in range(begin, end, step):
            WORK(line, at, args, WALK, V, MIDDLE, TILE // MIDDLE)
    else:
        for at in range(begin, end, step):
            WORK(line, at, args, WALK, V, FLAT, TILE // FLAT)


@triton.jit
def for_tiles_of_unit(
    WORK: tl.constexpr, line, unit, even, args,
    WALK: tl.constexpr, V: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Likewise, for the tiles of a unit."""
    count = tl.load(line + UNIT_PIECES)
    begin = unit * count
    end = tl.minimum(begin + count, tl.load(line + CHANNELS) * tl.load(line + PIECES))
    for_tiles(WORK, line, begin, end, tl.load(line + HEIGHT), even, args, WALK, V, TILE)


@triton.jit
def is_even(line, addresses):
    """Whether all rows begin and end at whole vectors; ``addresses``: all of them, or-ed."""
    return (tl.load(line + EVEN) != 0) & (addresses % 16 == 0)


@triton.jit
def part_of_row(line, index):
    """Which part of which row: piece (N,) -> row, first element and end, (N,) int64."""
    pieces, size = tl.load(line + PIECES), tl.load(line + PIECE_SIZE)
    row = index // pieces
    first = (index - row * pieces) * size
    return row, first, tl.minimum(first + size, tl.load(line + ROW_SIZE))


@triton.jit
def elements(
    line, operand: tl.constexpr, x, row, first, j, WALK: tl.constexpr, V: tl.constexpr
):  # fmt: skip
    """Pointers (N, M) to elements j of pieces of rows; ``x`` points to the operand's first."""
    if WALK:
        return x + walk_to(line, operand, row, first[:, None] + j)
    else:
        stride = tl.load(line + STRIDE + operand)
        return in_vectors(x.to(tl.int64), row * stride + first, x.dtype.element_ty, V)[:, None] + j


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
def read(at, mask):
    """Elements in float64, exactly."""
    x = tl.load(at, mask=mask, other=0)
    if x.dtype != tl.float64:
        x = x.to(tl.float32).to(tl.float64)
    return x


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
