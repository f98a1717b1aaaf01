"""Eq. 2 with the squared gradient of the batch."""

from __future__ import annotations

import torch
from torch import Tensor

from ...backends.contract import RowSums
from ...rows.bucket import Bucket
from ..effectiveness import Closure
from ..refresh import Refreshed


class Fisher(Refreshed):
    """Eq. 2 with the squared batch gradient for the Hessian diagonal: no extra backward.

    Cost: one more pass over gradients and weights. State: q, (2, rows). Needs nothing. It is no
    unbiased estimate of h: the gradient of a batch is squared, not that of each image.

    Args:
        every, average, spread: as in `Refreshed`.
    """

    def __init__(self, *, every: int = 1, average: float = 0.0, spread: int = 1) -> None:
        super().__init__(every=every, average=average, spread=spread)

    def before_backward(self, loss: Tensor, closure: Closure | None = None) -> None:
        """The gradient of the step is all it needs."""

    def check_ready(self) -> None:
        """Likewise."""

    def scores(self, bucket: Bucket, sums: RowSums) -> Tensor:
        if self.due:
            q = torch.full_like(sums.dot, torch.nan)  # a pair without gradients keeps its q
            rows = bucket.layout.slices()
            for l in self.layers:
                for m, g in enumerate(bucket.twins(l) or ()):
                    product = g.to(torch.float64, copy=True).mul_(self.twins.first(m, l)).square_()
                    q[m, rows[l]] = 0.5 * product.reshape(g.shape[0], -1).sum(1)
            self._add(q)
        return super().scores(bucket, sums)
