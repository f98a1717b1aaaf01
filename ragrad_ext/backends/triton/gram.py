"""Triton: the Gram sums of rows, |g_rgb|^2, |g_ir|^2 and g_rgb . g_ir."""

# mypy: allow-untyped-defs

import triton
import triton.language as tl

from .rows import (
    CHANNELS,
    FIRST_ROW,
    PARTS,
    PIECE_SIZE,
    PIECES,
    add_products,
    elements,
    part_of_row,
    read,
)


@triton.jit(noinline=True)
def gram_of_tile(
    line, at, args, WALK: tl.constexpr, V: tl.constexpr, N: tl.constexpr, M: tl.constexpr
):  # fmt: skip
    """The sums of N pieces from piece ``at`` on: rows of ``gram``, or ``parts`` of them."""
    a, b, gram, parts = args
    pieces = tl.load(line + PIECES)
    index = at + tl.arange(0, N)
    exists = index < tl.load(line + CHANNELS) * pieces
    row, first, end = part_of_row(line, index)
    size = tl.where(exists, end - first, 0).to(tl.int32) // V * V
    aa = tl.full((N, M // V), 0, tl.float64)
    bb = tl.full((N, M // V), 0, tl.float64)
    ab = tl.full((N, M // V), 0, tl.float64)
    for start in range(0, tl.load(line + PIECE_SIZE).to(tl.int32), M):
        j = start + tl.arange(0, M)[None, :]
        inside = j < size[:, None]
        x = read(elements(line, 0, a, row, first, j, WALK, V), inside)
        y = read(elements(line, 1, b, row, first, j, WALK, V), inside)
        aa = add_products(aa, x, x, V)
        bb = add_products(bb, y, y, V)
        ab = add_products(ab, x, y, V)
    if pieces == 1:
        out = gram + (tl.load(line + FIRST_ROW) + index) * 3
    else:
        out = parts + (tl.load(line + PARTS) + index) * 3
    tl.store(out, tl.sum(aa, 1), mask=exists)
    tl.store(out + 1, tl.sum(bb, 1), mask=exists)
    tl.store(out + 2, tl.sum(ab, 1), mask=exists)
