"""What a correction found and did, row by row."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .layout import Layout


@dataclass(frozen=True)
class Conflicts:
    """The record of one correction: flat tensors over all rows (l, i).

    Nothing here has waited for the device; printing, ``count()``, ``fraction()`` or
    ``.tolist()`` will.

    Attributes:
        cosine: (rows,) float32, cosine of the twin gradients. 0 where a gradient is zero or
            the pair was skipped; nan throughout a layer that held an inf or nan.
        gap: (rows,) float32, ``|R_rgb - R_ir|`` (Eq. 6); 0 where no reliability was measured.
        mask: (rows,) bool, which rows the rule changed; under RaGrad's own, the conflict set C of
            Eq. 6.
        strength: (rows,) float32, lambda of Eq. 10 on conflict rows, 0 elsewhere and under other
            rules.
        layout: which rows belong to which layer.
    """

    cosine: Tensor
    gap: Tensor
    mask: Tensor
    strength: Tensor
    layout: Layout

    @property
    def offsets(self) -> tuple[int, ...]:
        """(L + 1,) row bounds of the layers."""
        return self.layout.offsets

    def __len__(self) -> int:
        """The number of layers L."""
        return len(self.layout.channels)

    def count(self) -> int:
        """Number of conflict rows. Waits for the device."""
        return int(self.mask.sum())

    def fraction(self) -> float:
        """Conflict rows as a share of all rows; 0 where there are none. Waits for the device."""
        return self.count() / max(self.mask.numel(), 1)

    def layer(self, l: int) -> Conflicts:
        """The rows of layer ``l`` alone, as views."""
        l = range(len(self))[l]
        rows = slice(self.offsets[l], self.offsets[l + 1])
        return Conflicts(
            self.cosine[rows],
            self.gap[rows],
            self.mask[rows],
            self.strength[rows],
            Layout.of(self.layout.channels[l : l + 1]),
        )
