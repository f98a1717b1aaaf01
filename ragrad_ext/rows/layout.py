"""Where the rows of every layer are among all rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import accumulate, pairwise

import torch
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """Row offsets of L concatenated layers.

    Attributes:
        channels: C_l, the output channels of layer l.
        offsets: (L + 1,) bounds; layer l owns the flat rows ``offsets[l]:offsets[l + 1]``.
    """

    channels: tuple[int, ...]
    offsets: tuple[int, ...] = field(hash=False)

    def __hash__(self) -> int:
        """Kept, since every correction looks its plan up by a layout of hundreds of numbers."""
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash(self.channels)

    @classmethod
    def of(cls, channels: Sequence[int]) -> Layout:
        return cls(tuple(channels), (0, *accumulate(channels)))

    @property
    def rows(self) -> int:
        return self.offsets[-1]

    def slices(self) -> list[slice]:
        """The flat rows of every layer."""
        return [slice(a, b) for a, b in pairwise(self.offsets)]

    def place(self, row: int) -> tuple[int, int]:
        """The layer of a flat row, and its channel there."""
        l = next(l for l, end in enumerate(self.offsets[1:]) if row < end)
        return l, row - self.offsets[l]

    def layer_of_rows(self, device: torch.device) -> Tensor:
        """(rows,) int64: the layer of every row."""
        if torch.compiler.is_compiling():
            return _layer_of_rows(self.channels, device)
        return _kept_layer_of_rows(self.channels, device)

    def sum_by_layer(self, x: Tensor) -> Tensor:
        """(rows,) -> (L,): layer by layer, so in an order that never changes."""
        parts = [part.sum() for part in x.split(list(self.channels))]
        return torch.stack(parts) if parts else x.new_zeros(0)

    def count_by_layer(self, mask: Tensor) -> Tensor:
        """(rows,) bool -> (L,) int64, how many rows are marked."""
        counts = torch.zeros(len(self.channels), dtype=torch.int64, device=mask.device)
        return counts.index_add_(0, self.layer_of_rows(mask.device), mask.long())  # exact

    def to_rows(self, x: Tensor) -> Tensor:
        """(L,) -> (rows,): every row gets its layer's value."""
        return x[self.layer_of_rows(x.device)]


def _layer_of_rows(channels: tuple[int, ...], device: torch.device) -> Tensor:
    counts = torch.tensor(channels, dtype=torch.int64, device=device)
    return torch.repeat_interleave(counts, output_size=sum(channels))


_kept_layer_of_rows = lru_cache(maxsize=32)(_layer_of_rows)
