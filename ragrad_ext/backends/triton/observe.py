"""Triton: what REPA needs of gradients, weights and history, in one pass (Eq. 2 and 4)."""

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
    ROW_SIZE,
    SHAPE,
    UNIT_PIECES,
    UNITS,
    add_all_parts,
    add_products,
    last_to_arrive,
    leave,
    part_of_row,
    run_of,
    take_ticket,
    walk_to,
)

SUMS = tl.constexpr(7)  # |g_rgb|^2, |g_ir|^2, g_rgb . g_ir; g . theta, twice; |g - mu|^2, twice
GRADIENT = tl.constexpr(plan.GRADIENT)
WEIGHT = tl.constexpr(plan.WEIGHT)
MEAN = tl.constexpr(plan.MEAN)
OPERANDS = tl.constexpr(plan.OPERANDS)
HIGH = tl.constexpr(plan.ROWS[0])
MIDDLE = tl.constexpr(plan.ROWS[1])
FLAT = tl.constexpr(plan.ROWS[2])


@triton.jit
def elements(
    line, addresses, operand: tl.constexpr, row, first, j,
    DTYPE: tl.constexpr, WALK: tl.constexpr, V: tl.constexpr,
):  # fmt: skip
    """Pointers (N, M) to elements j of an operand's pieces."""
    address = tl.load(addresses + operand)
    if WALK:
        place = walk_to(line, operand, row, first[:, None] + j)
        return address.to(tl.pointer_type(DTYPE)) + place
    else:
        return run_of(line, address, operand, row, first, DTYPE, V)[:, None] + j


@triton.jit
def read(at, mask):
    x = tl.load(at, mask=mask, other=0)
    if x.dtype != tl.float64:
        x = x.to(tl.float32).to(tl.float64)
    return x


@triton.jit
def one_side(
    line, addresses, side: tl.constexpr, row, first, j, size, w, dot, deviation,
    G: tl.constexpr, W: tl.constexpr, M: tl.constexpr, WALK: tl.constexpr, V: tl.constexpr,
):  # fmt: skip
    """Adds one tile of one modality to its sums and moves its mu on. The gradient, both sums."""
    # `// V * V` changes no value; it shows the compiler where vectors end.
    weighted = j < tl.where(tl.load(addresses + WEIGHT + side) > 0, size, 0) // V * V
    remembered = j < tl.where(tl.load(addresses + MEAN + side) > 0, size, 0) // V * V
    g = read(elements(line, addresses, GRADIENT + side, row, first, j, G, WALK, V), j < size)
    theta_at = elements(line, addresses, WEIGHT + side, row, first, j, W, WALK, V)
    mu_at = elements(line, addresses, MEAN + side, row, first, j, M, WALK, V)
    theta = read(theta_at, weighted)
    mu = read(mu_at, remembered)
    d = g - mu  # Eq. 4: mu before this step
    finite = tl.abs(g) < float("inf")
    moved = tl.where(finite, mu + w * d, mu)
    tl.store(mu_at, moved.to(tl.float32).to(M), mask=remembered)
    return g, add_products(dot, g, theta, V), add_products(deviation, d, d, V)


@triton.jit
def report(
    line, addresses, i, there, aa, bb, ab, dot_a, dot_b, deviation_a, deviation_b,
    dots_out, dot_out, deviation_out, observed_out, rows,
):  # fmt: skip
    """The sums of channels i (N,) as the caller gets them: 0 for rows that held an inf or nan."""
    row = tl.load(line + FIRST_ROW) + i
    size = tl.load(line + ROW_SIZE).to(tl.float64)
    tl.store(dots_out + 3 * row, aa, mask=there)
    tl.store(dots_out + 3 * row + 1, bb, mask=there)
    tl.store(dots_out + 3 * row + 2, ab, mask=there)
    ok_a, ok_b = tl.abs(aa) < float("inf"), tl.abs(bb) < float("inf")
    deviation_a = tl.where(tl.load(addresses + MEAN) > 0, deviation_a / size, 0.0)
    deviation_b = tl.where(tl.load(addresses + MEAN + 1) > 0, deviation_b / size, 0.0)
    tl.store(observed_out + row, ok_a.to(tl.int8), mask=there)
    tl.store(observed_out + rows + row, ok_b.to(tl.int8), mask=there)
    tl.store(dot_out + row, tl.where(ok_a, dot_a, 0.0), mask=there)
    tl.store(dot_out + rows + row, tl.where(ok_b, dot_b, 0.0), mask=there)
    tl.store(deviation_out + row, tl.where(ok_a, deviation_a, 0.0), mask=there)
    tl.store(deviation_out + rows + row, tl.where(ok_b, deviation_b, 0.0), mask=there)


@triton.jit(noinline=True)
def observe_pieces(
    line, addresses, at, weight, parts, dots_out, dot_out, deviation_out, observed_out, rows,
    G: tl.constexpr, W: tl.constexpr, M: tl.constexpr, WALK: tl.constexpr, V: tl.constexpr,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """The seven sums of HEIGHT pieces, from piece ``at`` on."""
    pieces = tl.load(line + PIECES)
    index = at + tl.arange(0, HEIGHT)
    channels = tl.load(line + CHANNELS)
    exists = index < channels * pieces
    row, first, end = part_of_row(line, index)
    size = tl.where(exists, end - first, 0).to(tl.int32)[:, None] // V * V
    w_at = weight + tl.load(line + FIRST_ROW) + row
    with_a = row < tl.where(tl.load(addresses + MEAN) > 0, channels, 0)
    with_b = row < tl.where(tl.load(addresses + MEAN + 1) > 0, channels, 0)
    w_a = tl.load(w_at, mask=with_a, other=0)[:, None]
    w_b = tl.load(w_at + rows, mask=with_b, other=0)[:, None]
    aa = tl.full((HEIGHT, WIDTH // V), 0, tl.float64)
    bb = tl.full((HEIGHT, WIDTH // V), 0, tl.float64)
    ab = tl.full((HEIGHT, WIDTH // V), 0, tl.float64)
    dot_a = tl.full((HEIGHT, WIDTH // V), 0, tl.float64)
    dot_b = tl.full((HEIGHT, WIDTH // V), 0, tl.float64)
    deviation_a = tl.full((HEIGHT, WIDTH // V), 0, tl.float64)
    deviation_b = tl.full((HEIGHT, WIDTH // V), 0, tl.float64)
    for start in range(0, tl.load(line + PIECE_SIZE).to(tl.int32), WIDTH):
        j = start + tl.arange(0, WIDTH)[None, :]
        a, dot_a, deviation_a = one_side(
            line, addresses, 0, row, first, j, size, w_a, dot_a, deviation_a, G, W, M, WALK, V
        )
        b, dot_b, deviation_b = one_side(
            line, addresses, 1, row, first, j, size, w_b, dot_b, deviation_b, G, W, M, WALK, V
        )
        aa = add_products(aa, a, a, V)
        bb = add_products(bb, b, b, V)
        ab = add_products(ab, a, b, V)
    if pieces == 1:
        report(
            line, addresses, index, exists, tl.sum(aa, 1), tl.sum(bb, 1), tl.sum(ab, 1),
            tl.sum(dot_a, 1), tl.sum(dot_b, 1), tl.sum(deviation_a, 1), tl.sum(deviation_b, 1),
            dots_out, dot_out, deviation_out, observed_out, rows,
        )  # fmt: skip
    else:
        out = parts + (tl.load(line + PARTS) + index) * SUMS
        tl.store(out, tl.sum(aa, 1), mask=exists)
        tl.store(out + 1, tl.sum(bb, 1), mask=exists)
        tl.store(out + 2, tl.sum(ab, 1), mask=exists)
        tl.store(out + 3, tl.sum(dot_a, 1), mask=exists)
        tl.store(out + 4, tl.sum(dot_b, 1), mask=exists)
        tl.store(out + 5, tl.sum(deviation_a, 1), mask=exists)
        tl.store(out + 6, tl.sum(deviation_b, 1), mask=exists)


@triton.jit
def observe_unit(
    line, addresses, unit, weight, parts, dots_out, dot_out, deviation_out, observed_out, rows,
    G: tl.constexpr, W: tl.constexpr, M: tl.constexpr, WALK: tl.constexpr, V: tl.constexpr,
    TILE: tl.constexpr,
):  # fmt: skip
    count = tl.load(line + UNIT_PIECES)
    begin = unit * count
    end = tl.minimum(begin + count, tl.load(line + CHANNELS) * tl.load(line + PIECES))
    shape = tl.load(line + SHAPE)
    if shape == 0:
        for at in range(begin, end, HIGH):
            observe_pieces(
                line, addresses, at, weight, parts, dots_out, dot_out, deviation_out, observed_out,
                rows, G, W, M, WALK, V, HIGH, TILE // HIGH,
            )  # fmt: skip
    elif shape == 1:
        for at in range(begin, end, MIDDLE):
            observe_pieces(
                line, addresses, at, weight, parts, dots_out, dot_out, deviation_out, observed_out,
                rows, G, W, M, WALK, V, MIDDLE, TILE // MIDDLE,
            )  # fmt: skip
    else:
        for at in range(begin, end, FLAT):
            observe_pieces(
                line, addresses, at, weight, parts, dots_out, dot_out, deviation_out, observed_out,
                rows, G, W, M, WALK, V, FLAT, TILE // FLAT,
            )  # fmt: skip


@triton.jit(noinline=True)
def report_split_rows(
    line, addresses, parts, dots_out, dot_out, deviation_out, observed_out, rows, N: tl.constexpr
):  # fmt: skip
    """The report of rows whose sums are with those of their first pieces."""
    channels = tl.load(line + CHANNELS)
    for begin in range(0, channels, N):
        i = begin + tl.arange(0, N)
        there = i < channels
        at = parts + (tl.load(line + PARTS) + i * tl.load(line + PIECES)) * SUMS
        report(
            line, addresses, i, there,
            tl.load(at, mask=there, other=0, cache_modifier=".cg"),
            tl.load(at + 1, mask=there, other=0, cache_modifier=".cg"),
            tl.load(at + 2, mask=there, other=0, cache_modifier=".cg"),
            tl.load(at + 3, mask=there, other=0, cache_modifier=".cg"),
            tl.load(at + 4, mask=there, other=0, cache_modifier=".cg"),
            tl.load(at + 5, mask=there, other=0, cache_modifier=".cg"),
            tl.load(at + 6, mask=there, other=0, cache_modifier=".cg"),
            dots_out, dot_out, deviation_out, observed_out, rows,
        )  # fmt: skip


@triton.jit(
    do_not_specialize=[
        "queue", "tickets", "geometry", "pointers", "layers", "counters", "parts", "weight",
        "rows", "dots_out", "dot_out", "deviation_out", "observed_out",
    ]
)  # fmt: skip
def observe(
    queue, tickets: tl.int32, geometry, pointers, layers: tl.int32, counters,
    parts, weight, rows: tl.int64, dots_out, dot_out, deviation_out, observed_out,
    G: tl.constexpr, W: tl.constexpr, M: tl.constexpr, WALK: tl.constexpr, V: tl.constexpr,
    TILE: tl.constexpr,
):  # fmt: skip
    """An observation of ``layers`` layers.

    Args:
        queue: (tickets, 2) int32, see `triton_plan.sums`.
        geometry: (layers, COLUMNS) int64.
        pointers: (layers, 6) int64: gradients, weights, history; none above 0: not there.
        counters: 2 + layers int32.
        parts: (pieces, 7) float64, of rows in several pieces.
        weight: (2, rows) float64, w of Eq. 4; not read without a history.
        dots_out, dot_out, deviation_out, observed_out: `RowSums`.
        G, W, M: types of gradients, weights and history.
        V: elements of a vector, 16 bytes of the gradient.
        TILE: elements of a tile.
    """
    ticket = take_ticket(counters)
    while ticket < tickets:
        l = tl.load(queue + 2 * ticket.to(tl.int64)) // KINDS
        unit = tl.load(queue + 2 * ticket.to(tl.int64) + 1).to(tl.int64)
        line = geometry + l * COLUMNS
        addresses = pointers + l * OPERANDS
        together = tl.load(addresses) | tl.load(addresses + 1)
        together |= tl.load(addresses + 2) | tl.load(addresses + 3)
        together |= tl.load(addresses + 4) | tl.load(addresses + 5)
        even = (tl.load(line + EVEN) != 0) & (together % 16 == 0)
        if WALK:
            observe_unit(
                line, addresses, unit, weight, parts, dots_out, dot_out, deviation_out,
                observed_out, rows, G, W, M, 1, 1, TILE // V,
            )  # fmt: skip
        elif even:
            observe_unit(
                line, addresses, unit, weight, parts, dots_out, dot_out, deviation_out,
                observed_out, rows, G, W, M, 0, V, TILE,
            )  # fmt: skip
        else:
            observe_unit(
                line, addresses, unit, weight, parts, dots_out, dot_out, deviation_out,
                observed_out, rows, G, W, M, 0, 1, TILE // V,
            )  # fmt: skip
        pieces = tl.load(line + PIECES)
        if pieces > 1:  # noqa: SIM102
            if last_to_arrive(counters + 2 + l, tl.load(line + UNITS)):
                first = parts + tl.load(line + PARTS) * SUMS
                add_all_parts(line, first, first, pieces * SUMS, SUMS)
                report_split_rows(
                    line, addresses, parts, dots_out, dot_out, deviation_out, observed_out, rows,
                    128,
                )  # fmt: skip
        ticket = take_ticket(counters)
    leave(counters, 2 + layers)
