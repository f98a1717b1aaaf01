"""Effectiveness, Eq. 1: what the loss would lose without a channel. The interface of estimators.

First order is `FirstOrder` or, behind a normalisation, `Gate` (gate.py). Second order is measured
on some steps and held between (refresh.py): Eq. 2 by `Hutchinson`, `FiniteDifference` or `Fisher`,
whole rows by `RowQuadratic` (taylor.py), gates by `GateQuadratic`, Gauss-Newton's diagonal by
`GaussNewtonBartlett`. `Removal` is Eq. 1 itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from ..backends.contract import RowSums
from ..rows.bucket import Bucket
from ..rows.twins import Twins

Closure = Callable[[], Tensor]


class Effectiveness:
    """An estimator of Eq. 1. Here, and unless overridden, first order: ``E = -sum_j g_j theta_j``.

    One optimizer step calls ``before_backward`` and ``after_backward`` once per micro-batch, then
    ``check_ready``, then ``scores``.
    """

    def bind(self, twins: Twins) -> None:
        """Learn the paired weights; called once, by `Repa`."""
        self.twins = twins

    def before_backward(self, loss: Tensor, closure: Closure | None = None) -> None:
        """See a micro-batch's loss while its graph is alive; may differentiate it.

        Args:
            loss: the scalar whose ``backward()`` comes next, without a loss scale.
            closure: computes the same loss anew, for estimators that ask for it.
        """

    def after_backward(self, closure: Closure | None = None) -> None:
        """The same micro-batch once its graph is gone, so that another forward finds the memory."""

    def check_ready(self) -> None:
        """Raise RuntimeError if this step lacks something that ``scores`` will need."""

    def reads_weight(self, m: int, l: int) -> bool:
        """Whether ``sums.dot`` of pair l, modality m, is used at all."""
        return True

    def scores(self, bucket: Bucket, sums: RowSums) -> Tensor:
        """E of this step, (2, rows) float64; rows that are not finite count as unknown."""
        return -sums.dot

    def summary(self) -> str:
        """In one line, where E comes from."""
        return type(self).__name__

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs; empty for an estimator without memory."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of ``state_dict``."""


class FirstOrder(Effectiveness):
    """``E = -sum_j g_j theta_j``: free, and without meaning behind a BatchNorm, where it is 0."""
