"""What a run remembers of the epoch under way."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from ragrad_ext import RaGrad

from ..runs import Row
from .correction import layer_statistics


@dataclass
class Meter:
    """Sums over the steps of one epoch; part of every checkpoint.

    loss: summed over `steps`; conflicts: the fraction of conflict rows, summed over `reads`;
    layers: (3, L) float64 sums over `reads` of each layer's conflict fraction and mean
    reliability of rgb and ir; None without RaGrad.
    """

    loss: float = 0.0
    steps: int = 0
    seconds: float = 0.0
    conflicts: float = 0.0
    reads: int = 0
    layers: Tensor | None = None

    def read(self, ragrad: RaGrad) -> None:
        """Adds the latest correction. Waits for the device."""
        fraction, layers = layer_statistics(ragrad)
        self.conflicts += fraction
        self.layers = layers if self.layers is None else self.layers + layers
        self.reads += 1

    def row(self, epoch: int, lr: float) -> Row:
        """The epoch's row of the log; it has `conflicts` only with RaGrad."""
        row = {"epoch": epoch, "loss": self.loss / self.steps, "lr": lr, "seconds": self.seconds}
        return row | ({"conflicts": self.conflicts / self.reads} if self.reads else {})

    def layer_means(self) -> Tensor | None:
        return None if self.layers is None else self.layers / self.reads

    def shown(self) -> dict[str, str]:
        """The means so far, for a progress bar."""
        shown = {"loss": f"{self.loss / self.steps:.3f}"} if self.steps else {}
        return shown | ({"conflicts": f"{self.conflicts / self.reads:.1%}"} if self.reads else {})

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
