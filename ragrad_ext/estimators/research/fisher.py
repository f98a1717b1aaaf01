"""Eq. 2 with the squared gradient of the batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...backends.contract import RowSums
from ...rows.bucket import Bucket
from ..effectiveness import Closure
from ..refresh import Refreshed


class Fisher(Refreshed):
    """Eq. 2 with the squared batch gradient for the Hessian diagonal: no extra backward.

    Cost: one more pass over gradients and weights. State: q, (2, rows). Needs nothing. It is a
    biased estimate of h: the gradient of a batch is squared, not that of each image.

    Args:
        every: steps between refreshes.
        schedule: the other fields of `Schedule`. Nothing is drawn, so ``seed`` changes nothing, and
            gradients are averaged over processes already, so no ``group`` is needed.
    """

    def __init__(self, *, every: int = 1, **schedule: Any) -> None:
        super().__init__(every=every, **schedule)

    def before_backward(self, loss: Tensor, closure: Closure | None = None) -> None:
        """Only the gradient of the step is needed."""

    def check_ready(self) -> None:
        """The gradient of the step is always there."""

    def effect(self, bucket: Bucket, sums: RowSums) -> Tensor:
        if self.due:
            q = torch.full_like(sums.g_theta, torch.nan)  # a pair without gradients keeps its q
            rows = bucket.layout.slices()
            for l in self.layers:
                for m, g in enumerate(bucket.twins(l) or ()):
                    product = g.to(torch.float64, copy=True).mul_(self.twins.first(m, l)).square_()
                    q[m, rows[l]] = 0.5 * product.reshape(g.shape[0], -1).sum(1)
            self._add(q)
        return super().effect(bucket, sums)
