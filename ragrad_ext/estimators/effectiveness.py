"""Effectiveness, Eq. 1: what the loss would lose without a channel. The interface of estimators."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from ..backends.contract import RowSums
from ..rows.bucket import Bucket
from ..rows.twins import Twins

Closure = Callable[[], Tensor]


class Effectiveness:
    """An estimator of Eq. 1. The default is first order: ``E = -sum_j g_j theta_j``.

    `Repa` calls ``bind`` once. In each optimizer step it calls ``before_backward`` and
    ``after_backward`` once per micro-batch, then ``check_ready``, then ``effect``. A subclass
    overrides only what it needs; docs/adding_an_estimator.md shows one.

    Attributes:
        needs_trace: whether ``trace`` must see the graph of a forward before the first step.
    """

    @property
    def needs_trace(self) -> bool:
        return False

    def trace(self, *outputs: Tensor) -> None:
        """Learn from the autograd graph of ``outputs``, which must not be freed yet."""

    def bind(self, twins: Twins) -> None:
        """Learn the paired weights."""
        self.twins = twins

    def before_backward(self, loss: Tensor, closure: Closure | None = None) -> None:
        """See a micro-batch's loss while its graph is alive; may differentiate it.

        Args:
            loss: the scalar whose ``backward()`` comes next, without a loss scale.
            closure: computes the same loss again, for estimators that ask for it.
        """

    def after_backward(self, closure: Closure | None = None) -> None:
        """See the same micro-batch after its graph is freed, when a forward finds memory again."""

    def check_ready(self) -> None:
        """Raise RuntimeError if this step lacks something that ``effect`` will need."""

    def reads_weight(self, m: int, l: int) -> bool:
        """Whether ``effect`` uses ``sums.g_theta`` of pair l, modality m (0: rgb, 1: ir)."""
        return True

    def effect(self, bucket: Bucket, sums: RowSums) -> Tensor:
        """E of this step, (2, rows) float64, in units of the loss.

        A row that is not finite counts as unknown.

        Args:
            bucket: the gradients of this step, as rows.
            sums: what the backend summed; ``sums.g_theta`` is ``sum_j g_j theta_j``, (2, rows).
        """
        return -sums.g_theta

    def summary(self) -> str:
        """One line that says where E comes from."""
        return type(self).__name__

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs; empty for an estimator without memory."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of ``state_dict``."""


class FirstOrder(Effectiveness):
    """``E = -sum_j g_j theta_j``: free. Before a BatchNorm it is 0 and says nothing."""
