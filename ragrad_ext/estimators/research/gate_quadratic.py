"""The gate to second order, by products in a space as small as the gains."""

from __future__ import annotations

from torch import Tensor
from torch import distributed as dist

from ...backends.contract import RowSums
from ...rows.bucket import Bucket
from ...rows.twins import Twins
from ..effectiveness import Closure
from ..gate.gate import Gate
from ..taylor.probed import Probed, Product
from ..taylor.probes import Target


class GateQuadratic(Probed):
    """`Gate` with its second-order term: ``E = -a dL/da + 1/2 a^2 d2L/da2`` in each row's gate a.

    Behind a normalisation a is the gain gamma. Elsewhere it scales the row's weights, and the term
    is ``1/2 theta_i^T H theta_i``, as in `RowQuadratic`.

    Cost: of a product that differentiates gains in place of weights where it can: less than those
    of `Hutchinson` and `FiniteDifference`, as there is no gradient of a weight to compute.
    State: q, (2, rows). Needs: as `RowQuadratic`.

    Args:
        probes: products per refresh.
        product, step: as in `Probed`.
        every, average, spread, seed, group: as in `Refreshed`.

    Attributes:
        gate: the `Gate` that gives the first order and finds the gains.
    """

    def __init__(
        self,
        probes: int = 1,
        *,
        product: Product = "double",
        step: float | None = None,
        every: int = 10,
        average: float = 0.0,
        spread: int = 1,
        seed: int = 0,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        super().__init__(
            probes, form="rows", product=product, step=step,
            every=every, average=average, spread=spread, seed=seed, group=group,
        )  # fmt: skip
        self.gate = Gate(group=group)

    def bind(self, twins: Twins) -> None:
        super().bind(twins)
        self.gate.bind(twins)

    def before_backward(self, loss: Tensor, closure: Closure | None = None) -> None:
        self.gate.before_backward(loss, closure)
        super().before_backward(loss, closure)

    def targets(self) -> list[Target]:
        """The gain behind each weight of ``layers``, or else the weight."""
        return [self._gated(t) for t in super().targets()]

    def reads_weight(self, m: int, l: int) -> bool:
        return self.gate.reads_weight(m, l)

    def estimate(self, bucket: Bucket, sums: RowSums) -> Tensor:
        first = self.gate.scores(bucket, sums)
        return first + self.q if self.whole else first

    def _gated(self, t: Target) -> Target:
        gain = None if self.gate.gains is None else self.gate.gains[t.m][t.l]
        return t if gain is None else Target(gain, t.m, t.l, 0)

    def step_gradient(self, target: Target, bucket: Bucket) -> Tensor | None:
        weight = self.twins.weights[target.m][target.l]
        if target.tensor is weight:
            return super().step_gradient(target, bucket)
        return target.tensor.grad
