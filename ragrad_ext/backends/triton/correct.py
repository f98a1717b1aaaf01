"""Triton: Eq. 6-10. The dots of every row, a stage per layer, the rewrite of conflict rows."""

# mypy: allow-untyped-defs

import triton
import triton.language as tl

from . import plan
from .rows import (
    CHANNELS,
    COLUMNS,
    EVEN,
    FIRST_ROW,
    KINDS,
    PARTS,
    PIECE_SIZE,
    PIECES,
    SHAPE,
    STRIDE,
    UNIT_PIECES,
    UNITS,
    add_all_parts,
    add_products,
    in_vectors,
    last_to_arrive,
    leave,
    part_of_row,
    publish,
    run_of,
    take_ticket,
    wait_for,
    walk_to,
)

REDUCE = tl.constexpr(plan.REDUCE)
BLEND = tl.constexpr(plan.BLEND)
BLENDS = tl.constexpr(plan.BLENDS)
HIGH = tl.constexpr(plan.ROWS[0])
MIDDLE = tl.constexpr(plan.ROWS[1])
FLAT = tl.constexpr(plan.ROWS[2])


@triton.jit(noinline=True)
def reduce_pieces(
    line, a, b, at, dots, parts,
    DTYPE: tl.constexpr, WALK: tl.constexpr, V: tl.constexpr, N: tl.constexpr, M: tl.constexpr,
):  # fmt: skip
    """The dots of N pieces, from piece ``at`` on: |g_rgb|^2, |g_ir|^2 and g_rgb . g_ir."""
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
        if WALK:
            place = first[:, None] + j
            x_at = a.to(tl.pointer_type(DTYPE)) + walk_to(line, 0, row, place)
            y_at = b.to(tl.pointer_type(DTYPE)) + walk_to(line, 1, row, place)
        else:
            x_at = run_of(line, a, 0, row, first, DTYPE, V)[:, None] + j
            y_at = run_of(line, b, 1, row, first, DTYPE, V)[:, None] + j
        x = tl.load(x_at, mask=inside, other=0).to(tl.float32).to(tl.float64)
        y = tl.load(y_at, mask=inside, other=0).to(tl.float32).to(tl.float64)
        aa = add_products(aa, x, x, V)
        bb = add_products(bb, y, y, V)
        ab = add_products(ab, x, y, V)
    if pieces == 1:
        out = dots + (tl.load(line + FIRST_ROW) + index) * 3
    else:
        out = parts + (tl.load(line + PARTS) + index) * 3
    tl.store(out, tl.sum(aa, 1), mask=exists)
    tl.store(out + 1, tl.sum(bb, 1), mask=exists)
    tl.store(out + 2, tl.sum(ab, 1), mask=exists)


@triton.jit
def reduce_unit(
    line, a, b, unit, dots, parts,
    DTYPE: tl.constexpr, WALK: tl.constexpr, V: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    count = tl.load(line + UNIT_PIECES)
    begin = unit * count
    end = tl.minimum(begin + count, tl.load(line + CHANNELS) * tl.load(line + PIECES))
    shape = tl.load(line + SHAPE)
    if shape == 0:
        for at in range(begin, end, HIGH):
            reduce_pieces(line, a, b, at, dots, parts, DTYPE, WALK, V, HIGH, TILE // HIGH)
    elif shape == 1:
        for at in range(begin, end, MIDDLE):
            reduce_pieces(line, a, b, at, dots, parts, DTYPE, WALK, V, MIDDLE, TILE // MIDDLE)
    else:
        for at in range(begin, end, FLAT):
            reduce_pieces(line, a, b, at, dots, parts, DTYPE, WALK, V, FLAT, TILE // FLAT)


@triton.jit
def load_rows(line, i, there, dots, reliability, rows):
    """Of channels i (N,): |g_rgb|^2, |g_ir|^2, their dot and cosine, and both reliabilities."""
    row = tl.load(line + FIRST_ROW) + i
    aa = tl.load(dots + row * 3, mask=there, other=0, cache_modifier=".cg")
    bb = tl.load(dots + row * 3 + 1, mask=there, other=0, cache_modifier=".cg")
    ab = tl.load(dots + row * 3 + 2, mask=there, other=0, cache_modifier=".cg")
    r_rgb = tl.load(reliability + row, mask=there, other=0).to(tl.float64)
    r_ir = tl.load(reliability + rows + row, mask=there, other=0).to(tl.float64)
    zero = (aa == 0) | (bb == 0)
    # float32: cosines equal but for the last bits of their sums are equal for Eq. 6
    cosine = tl.where(zero, 0.0, ab / tl.sqrt(aa) / tl.sqrt(bb)).to(tl.float32)
    return aa, bb, ab, cosine, r_rgb, r_ir


@triton.jit(noinline=True)
def settle(
    line, dots, reliability, rows, eps, dual, blend,
    cosine_out, gap_out, mask_out, strength_out, scales, conflicts, found,
    N: tl.constexpr,
):  # fmt: skip
    """Eq. 6, 7, 10 and both factors of the rewrite, for a layer whose dots are all there."""
    channels, first_row = tl.load(line + CHANNELS), tl.load(line + FIRST_ROW)
    negative = tl.full((N,), 0, tl.float64)  # sum of the negative cosines
    negatives = tl.full((N,), 0, tl.float64)  # how many
    gaps = tl.full((N,), 0, tl.float64)
    bad = tl.full((N,), 0, tl.int32)
    for begin in range(0, channels, N):
        i = begin + tl.arange(0, N)
        there = i < channels
        aa, bb, _, cosine, r_rgb, r_ir = load_rows(line, i, there, dots, reliability, rows)
        below = cosine < 0
        negative += tl.where(below, cosine.to(tl.float64), 0.0)
        negatives += tl.where(below, 1.0, 0.0)
        gaps += tl.abs(r_rgb - r_ir)
        finite = (tl.abs(aa) < float("inf")) & (tl.abs(bb) < float("inf"))
        bad += tl.where(finite, 0, 1)
    mean_cosine = tl.sum(negative, 0) / tl.sum(negatives, 0)  # nan without: nothing is below it
    mean_gap = tl.sum(gaps, 0) / channels.to(tl.float64)
    all_finite = tl.sum(bad, 0) == 0
    may_conflict = tl.where(all_finite, channels, 0)  # how many channels

    count = tl.full((), 0, tl.int32)
    for begin in range(0, channels, N):
        i = begin + tl.arange(0, N)
        there = i < channels
        row = first_row + i
        aa, bb, ab, cosine, r_rgb, r_ir = load_rows(line, i, there, dots, reliability, rows)
        gap = tl.abs(r_rgb - r_ir)
        conflict = (cosine < 0) & (i < may_conflict)
        if dual != 0:
            conflict = conflict & (cosine.to(tl.float64) < mean_cosine) & (gap > mean_gap)  # Eq. 6
        weak_rgb = r_rgb < r_ir  # Eq. 7; a tie leaves rgb reliable
        lam = tl.full((N,), 0, tl.float64)
        if blend != 0:
            lam = 1 / (1 + tl.exp(-gap / (r_rgb + r_ir + eps)))  # Eq. 10
        lam = tl.where(conflict, lam, 0.0)
        p = 1 - lam
        q = lam - p * ab / (tl.where(weak_rgb, bb, aa) + eps)  # Eq. 8, 9
        tl.store(cosine_out + row, tl.where(all_finite, cosine, float("nan")), mask=there)
        tl.store(gap_out + row, gap.to(tl.float32), mask=there)
        tl.store(mask_out + row, conflict.to(tl.int8), mask=there)
        tl.store(strength_out + row, lam.to(tl.float32), mask=there)
        # The conflict rows of the layer, one after the other; even: rgb is weak.
        marks = conflict.to(tl.int32)
        place = first_row + count + tl.cumsum(marks, 0) - 1
        tl.store(conflicts + place, 2 * i + tl.where(weak_rgb, 0, 1), mask=conflict)
        tl.store(scales + 2 * place, p, mask=conflict)
        tl.store(scales + 2 * place + 1, q, mask=conflict)
        count += tl.sum(marks, 0)
    tl.store(found, count)


@triton.jit
def run_of_side(
    line, a, b, side, row, first, DTYPE: tl.constexpr, V: tl.constexpr
):  # fmt: skip
    """Pointers (N,) to where pieces of rows begin, of a modality that is row by row another."""
    is_rgb = side == 0
    stride = tl.where(is_rgb, tl.load(line + STRIDE), tl.load(line + STRIDE + 1))
    return in_vectors(tl.where(is_rgb, a, b), row * stride + first, DTYPE, V)


@triton.jit(noinline=True)
def blend_pieces(
    line, a, b, at, total, scales, conflicts,
    DTYPE: tl.constexpr, LARGEST: tl.constexpr, WALK: tl.constexpr, V: tl.constexpr,
    N: tl.constexpr, M: tl.constexpr,
):  # fmt: skip
    """weak = p weak + q strong, for N of the pieces of conflict rows, from ``at`` on."""
    index = at + tl.arange(0, N)
    exists = index < total
    k, first, end = part_of_row(line, index)
    k += tl.load(line + FIRST_ROW)
    mark = tl.load(conflicts + k, mask=exists, other=0, cache_modifier=".cg")
    p = tl.load(scales + 2 * k, mask=exists, other=0, cache_modifier=".cg")[:, None]
    q = tl.load(scales + 2 * k + 1, mask=exists, other=0, cache_modifier=".cg")[:, None]
    row, weak_rgb = mark // 2, mark % 2 == 0
    size = tl.where(exists, end - first, 0).to(tl.int32) // V * V
    for start in range(0, tl.load(line + PIECE_SIZE).to(tl.int32), M):
        j = start + tl.arange(0, M)[None, :]
        inside = j < size[:, None]
        if WALK:
            place = first[:, None] + j
            rgb_at = a.to(tl.pointer_type(DTYPE)) + walk_to(line, 0, row, place)
            ir_at = b.to(tl.pointer_type(DTYPE)) + walk_to(line, 1, row, place)
            weak_at = tl.where(weak_rgb[:, None], rgb_at, ir_at)
            strong_at = tl.where(weak_rgb[:, None], ir_at, rgb_at)
        else:
            weak_side = tl.where(weak_rgb, 0, 1)
            weak_at = run_of_side(line, a, b, weak_side, row, first, DTYPE, V)[:, None] + j
            strong_at = run_of_side(line, a, b, 1 - weak_side, row, first, DTYPE, V)[:, None] + j
        weak = tl.load(weak_at, mask=inside, other=0).to(tl.float32).to(tl.float64)
        strong = tl.load(strong_at, mask=inside, other=0).to(tl.float32).to(tl.float64)
        new = p * weak + q * strong  # Eq. 8, 9
        new = tl.minimum(tl.maximum(new, -LARGEST), LARGEST)  # makes no inf of finite gradients
        tl.store(weak_at, new.to(tl.float32).to(DTYPE), mask=inside)


@triton.jit
def blend_share(
    line, a, b, share, found, scales, conflicts,
    DTYPE: tl.constexpr, LARGEST: tl.constexpr, WALK: tl.constexpr, V: tl.constexpr,
    TILE: tl.constexpr,
):  # fmt: skip
    total = found * tl.load(line + PIECES)
    blends, shape = tl.load(line + BLENDS), tl.load(line + SHAPE)
    if shape == 0:
        for at in range(share * HIGH, total, blends * HIGH):
            blend_pieces(
                line, a, b, at, total, scales, conflicts,
                DTYPE, LARGEST, WALK, V, HIGH, TILE // HIGH,
            )  # fmt: skip
    elif shape == 1:
        for at in range(share * MIDDLE, total, blends * MIDDLE):
            blend_pieces(
                line, a, b, at, total, scales, conflicts,
                DTYPE, LARGEST, WALK, V, MIDDLE, TILE // MIDDLE,
            )  # fmt: skip
    else:
        for at in range(share * FLAT, total, blends * FLAT):
            blend_pieces(
                line, a, b, at, total, scales, conflicts,
                DTYPE, LARGEST, WALK, V, FLAT, TILE // FLAT,
            )  # fmt: skip


@triton.jit
def blend_layer(
    line, a, b, even, share, found, scales, conflicts,
    DTYPE: tl.constexpr, LARGEST: tl.constexpr, WALK: tl.constexpr, V: tl.constexpr,
    TILE: tl.constexpr,
):  # fmt: skip
    """The rewrite of one ticket's share of the ``found`` conflict rows of a settled layer."""
    n = tl.load(found, cache_modifier=".cg").to(tl.int64)
    if WALK:
        blend_share(line, a, b, share, n, scales, conflicts, DTYPE, LARGEST, 1, 1, TILE // V)
    elif even:
        blend_share(line, a, b, share, n, scales, conflicts, DTYPE, LARGEST, 0, V, TILE)
    else:
        blend_share(line, a, b, share, n, scales, conflicts, DTYPE, LARGEST, 0, 1, TILE // V)


@triton.jit
def is_even(line, a, b):
    """Whether all rows begin and end at whole vectors, where they lie now."""
    return (tl.load(line + EVEN) != 0) & ((a | b) % 16 == 0)


@triton.jit(
    do_not_specialize=[
        "queue", "tickets", "geometry", "pointers", "layers", "counters", "dots", "parts", "scales",
        "conflicts", "reliability", "rows", "eps", "dual", "blend", "cosine", "gap", "mask",
        "strength",
    ]
)  # fmt: skip
def correct(
    queue, tickets: tl.int32, geometry, pointers, layers: tl.int32, counters,
    dots, parts, scales, conflicts,
    reliability, rows: tl.int64, eps: tl.float64, dual: tl.int32, blend: tl.int32,
    cosine, gap, mask, strength,
    DTYPE: tl.constexpr, LARGEST: tl.constexpr, WALK: tl.constexpr, V: tl.constexpr,
    TILE: tl.constexpr,
):  # fmt: skip
    """Eq. 6-10 for ``layers`` layers, in one launch or as one half of two.

    Args:
        queue: (tickets, 2) int32, see `triton_plan.queue`.
        geometry: (layers, COLUMNS) int64.
        pointers: (layers, 2) int64, the addresses of the gradients.
        counters: 2 + 3 layers int32; the last third holds how many conflict rows a layer has.
        dots: (rows, 3) float64, found here.
        parts: (pieces, 3) float64, of rows in several pieces.
        scales: (rows, 2) float64, p and q of the conflict rows, in the order of ``conflicts``.
        conflicts: (rows,) int64, from a layer's first row on: twice the channel, plus one where
            the infrared row is the weak one.
        reliability: (2, rows) float32.
        cosine, gap, mask, strength: the record, (rows,).
        V: elements of 16 bytes.
        TILE: elements of a tile.
    """
    arrived, ready, found = counters + 2, counters + 2 + layers, counters + 2 + 2 * layers
    ticket = take_ticket(counters)
    while ticket < tickets:
        what = tl.load(queue + 2 * ticket.to(tl.int64))
        unit = tl.load(queue + 2 * ticket.to(tl.int64) + 1).to(tl.int64)
        l, kind = what // KINDS, what % KINDS
        line = geometry + l * COLUMNS
        a, b = tl.load(pointers + 2 * l), tl.load(pointers + 2 * l + 1)
        even = is_even(line, a, b)
        if kind == REDUCE:
            if WALK:
                reduce_unit(line, a, b, unit, dots, parts, DTYPE, 1, 1, TILE // V)
            elif even:
                reduce_unit(line, a, b, unit, dots, parts, DTYPE, 0, V, TILE)
            else:
                reduce_unit(line, a, b, unit, dots, parts, DTYPE, 0, 1, TILE // V)
            if last_to_arrive(arrived + l, tl.load(line + UNITS)):
                if tl.load(line + PIECES) > 1:
                    first = parts + tl.load(line + PARTS) * 3
                    add_all_parts(line, first, dots + tl.load(line + FIRST_ROW) * 3, 3, 3)
                settle(
                    line, dots, reliability, rows, eps, dual, blend,
                    cosine, gap, mask, strength, scales, conflicts, found + l, 256,
                )  # fmt: skip
                publish(ready + l)
        else:
            if kind == BLEND:
                wait_for(ready + l)  # the layer's REDUCE have lower tickets
            blend_layer(
                line, a, b, even, unit, found + l, scales, conflicts, DTYPE, LARGEST, WALK, V, TILE
            )
        ticket = take_ticket(counters)
    leave(counters, 2 + 2 * layers)
