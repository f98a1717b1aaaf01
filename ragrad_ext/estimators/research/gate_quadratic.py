"""The gate to second order, by products in a space as small as the gains."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...backends.contract import RowSums
from ...rows.bucket import Bucket
from ...rows.twins import Twins
from ..effectiveness import Closure
from ..gate import Gate
from ..taylor.probed import Probed, Product
from ..taylor.probes import Target


class GateQuadratic(Probed):
    """`Gate` with its second-order term: ``E = -a dL/da + 1/2 a^2 d2L/da2`` in each row's gate a.

    Before a normalisation with a gain of its own, a is that gain. Elsewhere a scales the row's
    weights, and the term is ``1/2 theta_i^T H theta_i``, as in `RowQuadratic`.

    Cost: less than `Hutchinson` and `FiniteDifference`, because gains are differentiated in place
    of weights where that is possible. State: q, (2, rows). Needs: as `RowQuadratic`.

    Args:
        probes: products per refresh.
        product, step: as in `Probed`.
        schedule: fields of `Schedule`.

    Attributes:
        gate: the `Gate` that gives the first order and finds the gains.
    """

    def __init__(
        self,
        probes: int = 1,
        *,
        product: Product = "double",
        step: float | None = None,
        **schedule: Any,
    ) -> None:
        super().__init__(probes, form="rows", product=product, step=step, **schedule)
        self.gate = Gate(group=self.schedule.group)

    def bind(self, twins: Twins) -> None:
        super().bind(twins)
        self.gate.bind(twins)

    def before_backward(self, loss: Tensor, closure: Closure | None = None) -> None:
        self.gate.before_backward(loss, closure)
        super().before_backward(loss, closure)

    def targets(self) -> list[Target]:
        """The gain after each weight of ``layers``; the weight itself where there is none."""
        return [self._gated(t) for t in super().targets()]

    def reads_weight(self, m: int, l: int) -> bool:
        return self.gate.reads_weight(m, l)

    def estimate(self, bucket: Bucket, sums: RowSums) -> Tensor:
        first = self.gate.effect(bucket, sums)
        return first + self.held if self.whole else first

    def _gated(self, t: Target) -> Target:
        gain = None if self.gate.gains is None else self.gate.gains[t.m][t.l]
        return t if gain is None else Target(gain, t.m, t.l, 0)

    def step_gradient(self, target: Target, bucket: Bucket) -> Tensor | None:
        weight = self.twins.weights[target.m][target.l]
        if target.tensor is weight:
            return super().step_gradient(target, bucket)
        return target.tensor.grad
