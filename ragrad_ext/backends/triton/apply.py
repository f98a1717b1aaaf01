"""Apply: ``[g_rgb; g_ir] <- M [g_rgb; g_ir]``, row by row, of the rows whose M is not the identity.

What a correction does in one launch applies M from a list of its conflict rows (`apply_share`);
the kernel `apply` here, from a table of all rows.
"""

# mypy: allow-untyped-defs

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from ...rows.bucket import Bucket
from ...rows.sums import Rows
from . import plan, queues
from .launch import Launch
from .rows import (
    CHANNELS,
    COLUMNS,
    FIRST_ROW,
    HEIGHT,
    PIECE_SIZE,
    PIECES,
    STRIDE,
    for_tiles,
    for_tiles_of_unit,
    in_vectors,
    is_even,
    part_of_row,
    read,
    walk_to,
)
from .verb import Verb

APPLIES = tl.constexpr(plan.APPLIES)


@triton.jit
def start_of_side(line, a, b, ir, row, first, V: tl.constexpr):
    """Pointers (N,) to where pieces of rows begin: of the infrared gradient where ``ir``."""
    stride = tl.where(ir, tl.load(line + STRIDE + 1), tl.load(line + STRIDE))
    address = tl.where(ir, b.to(tl.int64), a.to(tl.int64))
    return in_vectors(address, row * stride + first, a.dtype.element_ty, V)


@triton.jit
def sides(line, a, b, ir, row, first, j, WALK: tl.constexpr, V: tl.constexpr):
    """Pointers (N, M) to elements j of pieces of rows: of one side, infrared where ``ir`` (N,) is
    true, and of the other side."""
    if WALK:
        place = first[:, None] + j
        rgb_at = a + walk_to(line, 0, row, place)
        ir_at = b + walk_to(line, 1, row, place)
        return tl.where(ir[:, None], ir_at, rgb_at), tl.where(ir[:, None], rgb_at, ir_at)
    else:
        own_at = start_of_side(line, a, b, ir, row, first, V)[:, None] + j
        other_at = start_of_side(line, a, b, ir == 0, row, first, V)[:, None] + j
        return own_at, other_at


@triton.jit
def write(at, x, largest, mask):
    """Rounded once; beyond the range it saturates, for finite gradients shall stay finite."""
    x = tl.minimum(tl.maximum(x, -largest), largest)
    tl.store(at, x.to(tl.float32).to(at.dtype.element_ty), mask=mask)


# Functions of their own (noinline) keep their registers to themselves.
@triton.jit(noinline=True)
def apply_list(
    line, at, args, WALK: tl.constexpr, V: tl.constexpr, N: tl.constexpr, M: tl.constexpr
):  # fmt: skip
    """N of the ``total`` pieces of listed rows, from ``at`` on; one side of each changes."""
    a, b, total, changes, shares, largest = args
    index = at + tl.arange(0, N)
    exists = index < total
    k, first, end = part_of_row(line, index)
    k += tl.load(line + FIRST_ROW)
    change = tl.load(changes + k, mask=exists, other=0, cache_modifier=".cg")
    of_own = tl.load(shares + 2 * k, mask=exists, other=0, cache_modifier=".cg")[:, None]
    of_other = tl.load(shares + 2 * k + 1, mask=exists, other=0, cache_modifier=".cg")[:, None]
    row, ir = change // 2, change % 2 != 0
    size = tl.where(exists, end - first, 0).to(tl.int32) // V * V
    for start in range(0, tl.load(line + PIECE_SIZE).to(tl.int32), M):
        j = start + tl.arange(0, M)[None, :]
        inside = j < size[:, None]
        own_at, other_at = sides(line, a, b, ir, row, first, j, WALK, V)
        own, other = read(own_at, inside), read(other_at, inside)
        write(own_at, of_own * own + of_other * other, largest, inside)


@triton.jit
def apply_share(
    line, a, b, even, unit, count_at, mix, largest,
    WALK: tl.constexpr, V: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """What one ticket has of the conflict rows of a layer that is decided."""
    changes, shares = mix
    count = tl.load(count_at, cache_modifier=".cg").to(tl.int64)
    height = tl.load(line + HEIGHT)
    total, step = count * tl.load(line + PIECES), tl.load(line + APPLIES) * height
    args = (a, b, total, changes, shares, largest)
    for_tiles(apply_list, line, unit * height, total, step, even, args, WALK, V, TILE)


@triton.jit(noinline=True)
def apply_table(
    line, at, args, WALK: tl.constexpr, V: tl.constexpr, N: tl.constexpr, M: tl.constexpr
):  # fmt: skip
    """N pieces from ``at`` on; of each row one side changes, or both, or none.

    Pieces of rows that do not change are neither read nor written.
    """
    a, b, mix, largest = args
    index = at + tl.arange(0, N)
    exists = index < tl.load(line + CHANNELS) * tl.load(line + PIECES)
    row, first, end = part_of_row(line, index)
    m = mix + 4 * (tl.load(line + FIRST_ROW) + row)
    rgb_rgb, rgb_ir = tl.load(m, mask=exists, other=1), tl.load(m + 1, mask=exists, other=0)
    ir_rgb, ir_ir = tl.load(m + 2, mask=exists, other=0), tl.load(m + 3, mask=exists, other=1)
    changes_rgb = (rgb_rgb != 1) | (rgb_ir != 0)
    changes_ir = (ir_rgb != 0) | (ir_ir != 1)
    both = (changes_rgb & changes_ir)[:, None]
    any_both = tl.max(both.to(tl.int32)) != 0
    ir = changes_rgb == 0  # the side that changes first, "own", is infrared
    of_own, of_other = tl.where(ir, ir_ir, rgb_rgb)[:, None], tl.where(ir, ir_rgb, rgb_ir)[:, None]
    ir_ir, ir_rgb = ir_ir[:, None], ir_rgb[:, None]
    size = tl.where(changes_rgb | changes_ir, end - first, 0).to(tl.int32) // V * V
    for start in range(0, tl.max(size), M):
        j = start + tl.arange(0, M)[None, :]
        inside = j < size[:, None]
        own_at, other_at = sides(line, a, b, ir, row, first, j, WALK, V)
        own, other = read(own_at, inside), read(other_at, inside)
        write(own_at, of_own * own + of_other * other, largest, inside)
        if any_both:  # there, "own" is rgb
            write(other_at, ir_ir * other + ir_rgb * own, largest, inside & both)


@triton.jit(do_not_specialize=["units", "geometry", "pointers", "mix", "largest"])
def apply(
    units, geometry, pointers, mix, largest: tl.float64,
    DTYPE: tl.constexpr, WALK: tl.constexpr, V: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """One unit a block: rows depend on no other rows.

    Args:
        units: (blocks, 2) int32, see `queues.units`.
        geometry: (layers, COLUMNS) int64.
        pointers: (layers, 2) int64, the addresses of the gradients.
        mix: (rows, 2, 2) float64, M.
        largest: of the gradients' type.
        V: elements of 16 bytes.
        TILE: elements of a tile.
    """
    block = units + 2 * tl.program_id(0).to(tl.int64)
    l, unit = tl.load(block), tl.load(block + 1).to(tl.int64)
    line = geometry + l * COLUMNS
    a, b = tl.load(pointers + 2 * l), tl.load(pointers + 2 * l + 1)
    args = (a.to(tl.pointer_type(DTYPE)), b.to(tl.pointer_type(DTYPE)), mix, largest)
    for_tiles_of_unit(apply_table, line, unit, is_even(line, a | b), args, WALK, V, TILE)


class Apply(Verb):
    """How `apply` is launched."""

    def __init__(self, bucket: Bucket, operands: Sequence[Rows] = ()) -> None:
        super().__init__(bucket, operands)
        self.units = [self.upload(queues.units(group.cuts)) for group in self.groups]
        for group in self.groups:  # as many elements as of float32: more need too many registers
            group.constants["TILE"] = group.constants["TILE"] * group.dtype.itemsize // 4

    def launches(self, mix: Tensor) -> list[Launch]:
        options = self.options(self.tuned.correct_warps)
        return [
            Launch(
                apply,
                len(units),
                {"units": units, "mix": mix, **self.of_gradients(group)},
                options,
            )
            for group, units in zip(self.groups, self.units, strict=True)
        ]
