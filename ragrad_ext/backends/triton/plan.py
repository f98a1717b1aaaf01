"""How rows are cut into units of work.

Nothing here needs Triton or a device: plain functions of a geometry and of limits. What they return
is what the kernels read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

# Operands of a layer; rgb is even, ir is odd.
GRADIENT, WEIGHT, MEAN, OPERANDS = 0, 2, 4, 6
MAX_DIMS = 6  # of a row, after neighbouring dimensions are merged

# A tile is so many rows (or pieces of rows) high; all tiles hold equally many elements.
HEIGHTS = (128, 16, 2)

# Columns of the geometry table, int64, one line per layer.
(
    FIRST_ROW,  # its first flat row
    CHANNELS,
    ROW_SIZE,
    PIECES,  # of a row
    PIECE_SIZE,  # elements; the last piece of a row may be shorter
    UNIT_PIECES,
    UNITS,
    APPLIES,  # tickets of the rewrite
    PARTS,  # where the sums of its pieces begin, counted in pieces; for rows in several pieces
    HEIGHT,  # of its tiles, one of HEIGHTS
    EVEN,  # whether every row of every operand begins and ends at a whole vector
    NDIM,
    STRIDE,  # from channel to channel, one column per operand
) = range(13)
SIZES = STRIDE + OPERANDS  # of the dimensions of a row, outermost first
STRIDES = SIZES + MAX_DIMS  # theirs, operand by operand
COLUMNS = STRIDES + OPERANDS * MAX_DIMS


class Limits(NamedTuple):
    """How finely work is cut; a part of the tuning of an architecture.

    Attributes:
        tile_bytes: bytes of one gradient loaded per tile.
        unit_bytes: bytes of one gradient per unit: many tiles, and many units per launch.
        row_pieces: the most pieces of a row; one block sums them.
        share: units per ticket of the rewrite. Few rows conflict, so most of a share is empty.
    """

    tile_bytes: int = 8 << 10
    unit_bytes: int = 32 << 10
    row_pieces: int = 4096
    share: int = 8


class Layer(NamedTuple):
    """Where the rows of one pair are. A row is walked in the memory order of the rgb gradient.

    Attributes:
        pair: l, among all pairs.
        dtypes: per operand; None for one that is not read.
        stride: from channel to channel, per operand, in elements.
        sizes: of the dimensions of a row, outermost first, neighbours merged.
        strides: theirs, per operand.
    """

    pair: int
    first_row: int
    channels: int
    row_size: int
    dtypes: tuple[torch.dtype | None, ...]
    stride: tuple[int, ...]
    sizes: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]

    @property
    def runs(self) -> bool:
        """Whether every row of every operand is one run of consecutive elements."""
        strides = (s for s, d in zip(self.strides, self.dtypes, strict=True) if d is not None)
        return self.row_size == 1 or all(s == (1,) for s in strides)

    def even(self, vector: int) -> bool:
        """Whether all rows begin and end at a multiple of ``vector`` elements."""
        strides = self.stride if self.channels > 1 else ()
        return all(n % vector == 0 for n in (self.row_size, *strides))


def layer_of(
    pair: int, first_row: int, axis: int, operands: Sequence[Tensor | None]
) -> Layer | None:
    """The layer of up to six tensors of one shape; None where there is nothing to do.

    Raises:
        ValueError: its rows have more separate dimensions than the kernels walk.
    """
    lead = operands[0]
    if lead is None or operands[1] is None or lead.numel() == 0:
        return None
    present = [x.stride() if x is not None else None for x in operands]
    dims = [d for d in range(lead.dim()) if d != axis and lead.shape[d] > 1]
    steps = lead.stride()
    dims.sort(key=lambda d: steps[d], reverse=True)  # stable, as without reverse
    sizes: list[int] = []
    strides: list[list[int]] = []  # per dimension, per operand
    for d in dims:
        size, step = lead.shape[d], [s[d] if s is not None else 0 for s in present]
        if strides and all(o == s * size for o, s in zip(strides[-1], step, strict=True)):
            sizes[-1] *= size
            strides[-1] = step
        else:
            sizes.append(size)
            strides.append(step)
    if len(sizes) > MAX_DIMS:
        raise ValueError(
            f"grads_rgb[{pair}] has {len(sizes)} separate dimensions in a row; the triton "
            f"backend walks {MAX_DIMS}; pass contiguous gradients"
        )
    return Layer(
        pair,
        first_row,
        lead.shape[axis],
        lead.numel() // lead.shape[axis],
        tuple(x.dtype if x is not None else None for x in operands),
        tuple(s[axis] if s is not None else 0 for s in present),
        tuple(sizes) or (1,),
        tuple(zip(*strides, strict=True)) or ((1,),) * len(present),
    )


class Cut(NamedTuple):
    """One layer in pieces, units and tickets. Depends on no device: nor do the sums.

    Attributes:
        height: of its tiles, one of `HEIGHTS`.
        pieces, piece_size: a row, or the parts of a long one.
        unit_pieces: consecutive pieces that make a unit.
        units: unit u has the pieces from ``u * unit_pieces`` on.
        applies: tickets of the rewrite.
    """

    height: int
    pieces: int
    piece_size: int
    unit_pieces: int
    units: int
    applies: int


def cut(channels: int, row_size: int, item_bytes: int, limits: Limits) -> Cut:
    """The cut with the widest tiles that are three quarters full, or else with the fullest."""
    choices = [_cut_in(h, channels, row_size, item_bytes, limits) for h in HEIGHTS]

    def fill(c: Cut) -> float:
        width = tile_width(c.height, item_bytes, limits)
        return row_size / (c.pieces * -(-c.piece_size // width) * width)

    full = [c for c in choices if fill(c) >= 0.75]
    return full[-1] if full else max(choices, key=fill)


def tile_width(height: int, item_bytes: int, limits: Limits) -> int:
    """Elements of each of a tile's rows."""
    return limits.tile_bytes // item_bytes // height


def _cut_in(height: int, channels: int, row_size: int, item_bytes: int, limits: Limits) -> Cut:
    vector = 16 // item_bytes
    longest = max(
        limits.unit_bytes // item_bytes // height, -(-row_size // limits.row_pieces), vector
    )
    size = -(-row_size // -(-row_size // longest))
    if size < row_size:  # every piece starts at a whole vector, if the row does
        size = -(-size // vector) * vector
    pieces = -(-row_size // size)
    tile_bytes = height * size * item_bytes
    unit_pieces = height * max(1, limits.unit_bytes // tile_bytes)
    units = -(-channels * pieces // unit_pieces)
    return Cut(height, pieces, size, unit_pieces, units, -(-units // limits.share))


def geometry(layers: Sequence[Layer], cuts: Sequence[Cut]) -> np.ndarray:
    """(layers, COLUMNS) int64, what the kernels know of the layers of one launch."""
    out = np.zeros((len(layers), COLUMNS), np.int64)
    parts = 0
    for line, layer, c in zip(out, layers, cuts, strict=True):
        line[FIRST_ROW], line[CHANNELS] = layer.first_row, layer.channels
        line[ROW_SIZE], line[PIECES], line[PIECE_SIZE] = layer.row_size, c.pieces, c.piece_size
        line[UNIT_PIECES], line[UNITS], line[APPLIES] = c.unit_pieces, c.units, c.applies
        line[PARTS], line[HEIGHT], line[NDIM] = parts, c.height, len(layer.sizes)
        line[EVEN] = layer.even(vector_of(layer))
        for o, (stride, steps) in enumerate(zip(layer.stride, layer.strides, strict=True)):
            line[STRIDE + o] = stride
            line[STRIDES + o * MAX_DIMS :][: len(steps)] = steps
        line[SIZES:][: len(layer.sizes)] = layer.sizes
        parts += pieces_to_add(layer, c)
    return out


def pieces_to_add(layer: Layer, c: Cut) -> int:
    """How many partial sums wait in memory until the layer's last unit is done."""
    return layer.channels * c.pieces if c.pieces > 1 else 0


def vector_of(layer: Layer) -> int:
    """Elements that fill 16 bytes of the widest operand."""
    return 16 // max(d.itemsize for d in layer.dtypes if d is not None)


def item_bytes(layer: Layer) -> int:
    assert layer.dtypes[0] is not None
    return layer.dtypes[0].itemsize
