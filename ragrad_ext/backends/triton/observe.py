"""Triton: what REPA needs of gradients, weights and history, in one pass (Eq. 2 and 4)."""

# mypy: allow-untyped-defs

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...rows.bucket import Bucket
from ...rows.sums import Rows, RowSums
from . import plan, queues
from .launch import Launch, triton_type
from .rows import (
    CHANNELS,
    COLUMNS,
    FIRST_ROW,
    PARTS,
    PIECE_SIZE,
    PIECES,
    ROW_SIZE,
    UNITS,
    add_all_parts,
    add_products,
    elements,
    for_tiles_of_unit,
    is_even,
    part_of_row,
    read,
)
from .tickets import last_to_arrive, leave, take_ticket
from .verb import Verb

SUMS = tl.constexpr(7)  # |g_rgb|^2, |g_ir|^2, g_rgb . g_ir; g . theta, twice; |g - mu|^2, twice
GRADIENT = tl.constexpr(plan.GRADIENT)
WEIGHT = tl.constexpr(plan.WEIGHT)
MEAN = tl.constexpr(plan.MEAN)
OPERANDS = tl.constexpr(plan.OPERANDS)


@triton.jit
def is_there(addresses, operand):
    """Whether an operand is read: an address below 0 says that it is not."""
    return tl.load(addresses + operand) > 0


@triton.jit
def one_side(
    line, addresses, types, side: tl.constexpr, row, first, j, size, w, g_theta, deviation,
    WALK: tl.constexpr, V: tl.constexpr,
):  # fmt: skip
    """Adds one tile of one modality to its sums and moves its mu on. The gradient, both sums."""
    g_type, theta_type, mu_type = types
    # `// V * V` changes no value; it shows the compiler where vectors end.
    weighted = j < tl.where(is_there(addresses, WEIGHT + side), size, 0) // V * V
    remembered = j < tl.where(is_there(addresses, MEAN + side), size, 0) // V * V
    g_at = tl.load(addresses + GRADIENT + side).to(g_type.dtype)
    theta_at = tl.load(addresses + WEIGHT + side).to(theta_type.dtype)
    mu_at = tl.load(addresses + MEAN + side).to(mu_type.dtype)
    g = read(elements(line, GRADIENT + side, g_at, row, first, j, WALK, V), j < size)
    theta_at = elements(line, WEIGHT + side, theta_at, row, first, j, WALK, V)
    mu_at = elements(line, MEAN + side, mu_at, row, first, j, WALK, V)
    theta = read(theta_at, weighted)
    mu = read(mu_at, remembered)
    d = g - mu  # Eq. 4: mu before this step
    finite = tl.abs(g) < float("inf")
    moved = tl.where(finite, mu + w * d, mu)
    tl.store(mu_at, moved.to(tl.float32).to(mu_at.dtype.element_ty), mask=remembered)
    return g, add_products(g_theta, g, theta, V), add_products(deviation, d, d, V)


@triton.jit
def store_sums(
    line, addresses, i, there, aa, bb, ab, g_theta_a, g_theta_b, deviation_a, deviation_b,
    out, rows,
):  # fmt: skip
    """The sums of channels i (N,) as the caller gets them: 0 for rows that held an inf or nan."""
    gram, g_theta, deviation, observed = out
    row = tl.load(line + FIRST_ROW) + i
    size = tl.load(line + ROW_SIZE).to(tl.float64)
    tl.store(gram + 3 * row, aa, mask=there)
    tl.store(gram + 3 * row + 1, bb, mask=there)
    tl.store(gram + 3 * row + 2, ab, mask=there)
    ok_a, ok_b = tl.abs(aa) < float("inf"), tl.abs(bb) < float("inf")
    deviation_a = tl.where(is_there(addresses, MEAN), deviation_a / size, 0.0)
    deviation_b = tl.where(is_there(addresses, MEAN + 1), deviation_b / size, 0.0)
    tl.store(observed + row, ok_a.to(tl.int8), mask=there)
    tl.store(observed + rows + row, ok_b.to(tl.int8), mask=there)
    tl.store(g_theta + row, tl.where(ok_a, g_theta_a, 0.0), mask=there)
    tl.store(g_theta + rows + row, tl.where(ok_b, g_theta_b, 0.0), mask=there)
    tl.store(deviation + row, tl.where(ok_a, deviation_a, 0.0), mask=there)
    tl.store(deviation + rows + row, tl.where(ok_b, deviation_b, 0.0), mask=there)


# Functions of their own (noinline) keep their registers to themselves.
@triton.jit(noinline=True)
def observe_tile(
    line, at, args, WALK: tl.constexpr, V: tl.constexpr, N: tl.constexpr, M: tl.constexpr
):  # fmt: skip
    """The seven sums of N pieces, from piece ``at`` on."""
    addresses, types, step_size, parts, out, rows = args
    pieces = tl.load(line + PIECES)
    index = at + tl.arange(0, N)
    channels = tl.load(line + CHANNELS)
    exists = index < channels * pieces
    row, first, end = part_of_row(line, index)
    size = tl.where(exists, end - first, 0).to(tl.int32)[:, None] // V * V
    w_at = step_size + tl.load(line + FIRST_ROW) + row
    with_a = row < tl.where(is_there(addresses, MEAN), channels, 0)
    with_b = row < tl.where(is_there(addresses, MEAN + 1), channels, 0)
    w_a = tl.load(w_at, mask=with_a, other=0)[:, None]
    w_b = tl.load(w_at + rows, mask=with_b, other=0)[:, None]
    aa = tl.full((N, M // V), 0, tl.float64)
    bb = tl.full((N, M // V), 0, tl.float64)
    ab = tl.full((N, M // V), 0, tl.float64)
    g_theta_a = tl.full((N, M // V), 0, tl.float64)
    g_theta_b = tl.full((N, M // V), 0, tl.float64)
    deviation_a = tl.full((N, M // V), 0, tl.float64)
    deviation_b = tl.full((N, M // V), 0, tl.float64)
    for start in range(0, tl.load(line + PIECE_SIZE).to(tl.int32), M):
        j = start + tl.arange(0, M)[None, :]
        a, g_theta_a, deviation_a = one_side(
            line, addresses, types, 0, row, first, j, size, w_a, g_theta_a, deviation_a, WALK, V
        )
        b, g_theta_b, deviation_b = one_side(
            line, addresses, types, 1, row, first, j, size, w_b, g_theta_b, deviation_b, WALK, V
        )
        aa = add_products(aa, a, a, V)
        bb = add_products(bb, b, b, V)
        ab = add_products(ab, a, b, V)
    if pieces == 1:
        store_sums(
            line, addresses, index, exists, tl.sum(aa, 1), tl.sum(bb, 1), tl.sum(ab, 1),
            tl.sum(g_theta_a, 1), tl.sum(g_theta_b, 1), tl.sum(deviation_a, 1),
            tl.sum(deviation_b, 1), out, rows,
        )  # fmt: skip
    else:
        part = parts + (tl.load(line + PARTS) + index) * SUMS
        tl.store(part, tl.sum(aa, 1), mask=exists)
        tl.store(part + 1, tl.sum(bb, 1), mask=exists)
        tl.store(part + 2, tl.sum(ab, 1), mask=exists)
        tl.store(part + 3, tl.sum(g_theta_a, 1), mask=exists)
        tl.store(part + 4, tl.sum(g_theta_b, 1), mask=exists)
        tl.store(part + 5, tl.sum(deviation_a, 1), mask=exists)
        tl.store(part + 6, tl.sum(deviation_b, 1), mask=exists)


@triton.jit(noinline=True)
def store_sums_of_split_rows(line, addresses, parts, out, rows, N: tl.constexpr):
    """Of rows whose sums are at the places of their first pieces."""
    channels = tl.load(line + CHANNELS)
    for begin in range(0, channels, N):
        i = begin + tl.arange(0, N)
        there = i < channels
        at = parts + (tl.load(line + PARTS) + i * tl.load(line + PIECES)) * SUMS
        store_sums(
            line, addresses, i, there,
            tl.load(at, mask=there, other=0, cache_modifier=".cg"),
            tl.load(at + 1, mask=there, other=0, cache_modifier=".cg"),
            tl.load(at + 2, mask=there, other=0, cache_modifier=".cg"),
            tl.load(at + 3, mask=there, other=0, cache_modifier=".cg"),
            tl.load(at + 4, mask=there, other=0, cache_modifier=".cg"),
            tl.load(at + 5, mask=there, other=0, cache_modifier=".cg"),
            tl.load(at + 6, mask=there, other=0, cache_modifier=".cg"),
            out, rows,
        )  # fmt: skip


@triton.jit(
    do_not_specialize=[
        "units", "count", "counters", "geometry", "pointers", "layers", "parts", "step_size",
        "rows", "gram", "g_theta", "deviation", "observed",
    ]
)  # fmt: skip
def observe(
    units, count: tl.int32, counters, geometry, pointers, layers: tl.int32, parts, step_size,
    rows: tl.int64, gram, g_theta, deviation, observed,
    G: tl.constexpr, W: tl.constexpr, M: tl.constexpr, WALK: tl.constexpr, V: tl.constexpr,
    TILE: tl.constexpr,
):  # fmt: skip
    """An observation of ``layers`` layers.

    Args:
        units: (count, 2) int32, see `queues.units`: a ticket each.
        counters: 2 + layers int32. Of every layer: units that have arrived.
        geometry: (layers, COLUMNS) int64.
        pointers: (layers, 6) int64: gradients, weights, history; below 0: not there.
        parts: (pieces, 7) float64, of rows in several pieces.
        step_size: (2, rows) float64, w of Eq. 4; not read without a history.
        gram, g_theta, deviation, observed: `RowSums`.
        G, W, M: types of gradients, weights and history.
        V: elements of a vector, 16 bytes of the widest.
        TILE: elements of a tile.
    """
    out = (gram, g_theta, deviation, observed)
    ticket = take_ticket(counters)
    while ticket < count:
        l = tl.load(units + 2 * ticket.to(tl.int64))
        unit = tl.load(units + 2 * ticket.to(tl.int64) + 1).to(tl.int64)
        line, addresses = geometry + l * COLUMNS, pointers + l * OPERANDS
        g, theta = tl.load(addresses + GRADIENT), tl.load(addresses + WEIGHT)
        mu = tl.load(addresses + MEAN)
        together = g | theta | mu | tl.load(addresses + GRADIENT + 1)
        together |= tl.load(addresses + WEIGHT + 1) | tl.load(addresses + MEAN + 1)
        even = is_even(line, together)
        # For their types: a tile loads its addresses itself, when it needs them, to save registers.
        types = (g.to(tl.pointer_type(G)), theta.to(tl.pointer_type(W)), mu.to(tl.pointer_type(M)))
        args = (addresses, types, step_size, parts, out, rows)
        for_tiles_of_unit(observe_tile, line, unit, even, args, WALK, V, TILE)
        pieces = tl.load(line + PIECES)
        if pieces > 1:  # noqa: SIM102
            if last_to_arrive(counters + 2 + l, tl.load(line + UNITS)):
                first = parts + tl.load(line + PARTS) * SUMS
                add_all_parts(line, first, first, pieces * SUMS, SUMS)
                store_sums_of_split_rows(line, addresses, parts, out, rows, 128)
        ticket = take_ticket(counters)
    leave(counters, 2 + layers)


class Observe(Verb):
    """How `observe` is launched."""

    sides = plan.OPERANDS

    def __init__(self, bucket: Bucket, operands: Sequence[Rows] = ()) -> None:
        super().__init__(bucket, operands)
        self.no_history = torch.zeros(1, dtype=torch.float64, device=self.device)
        self.units = [self.upload(queues.units(g.cuts)) for g in self.groups]
        self.counters = [self.zeros(2 + len(g.layers)) for g in self.groups]
        self.all_parts = [self.parts(g, SUMS.value) for g in self.groups]
        for group in self.groups:
            names = map(triton_type, self.types(group.layers[0]))
            group.constants |= dict(zip("GWM", names, strict=True))
            group.constants["TILE"] //= 2  # six operands instead of two

    def types(self, layer: plan.Layer) -> tuple[torch.dtype, ...]:
        gradient, _, *others = layer.dtypes
        assert gradient is not None
        weight = others[0] or others[1] or gradient
        return gradient, weight, others[2] or others[3] or torch.float32

    def sums(self) -> RowSums:
        """Memory for what is found."""
        rows = self.layout.rows
        gram = self.new(torch.float64, rows, 3)
        g_theta, deviation = (self.new(torch.float64, 2, rows) for _ in range(2))
        return RowSums(gram, g_theta, deviation, self.new(torch.bool, 2, rows))

    def launches(self, sums: RowSums, step_size: Tensor | None) -> list[Launch]:
        shared = {
            "step_size": self.no_history if step_size is None else step_size,
            "rows": self.layout.rows,
            **sums._asdict(),
            "observed": sums.observed.view(torch.int8),
        }
        blocks = self.processors * self.tuned.observe_blocks
        options = self.options(self.tuned.observe_warps)
        return [
            Launch(
                observe,
                min(len(units), blocks),
                {
                    "units": units,
                    "count": len(units),
                    "counters": counters,
                    "layers": len(group.layers),
                    "parts": parts,
                    **shared,
                    **group.tables,
                    **group.constants,
                },
                options,
            )
            for group, units, counters, parts in zip(
                self.groups, self.units, self.counters, self.all_parts, strict=True
            )
        ]
