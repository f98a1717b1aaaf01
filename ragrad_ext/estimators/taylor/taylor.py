"""Eq. 2: effectiveness by a second-order Taylor expansion, by where its Hessian comes from."""

from __future__ import annotations

import torch
from torch import Tensor
from torch import distributed as dist

from ...backends.contract import RowSums
from ...rows.bucket import Bucket
from ..effectiveness import Closure
from ..refresh import Refreshed
from .probed import Probed, Product
from .probes import Form


class Hutchinson(Probed):
    """Eq. 2 as the paper has it: ``h = E_z[z * Hz]`` by exact double backward, z Rademacher.

    Cost: a refresh takes about three extra steps and the memory of a second graph.
    State: q, (2, rows). Needs: ``ragrad.backward(loss)``, and a double backward of every operator.

    Args:
        probes: products per refresh.
        form: ``"diagonal"``: the paper's; ``"weighted"``: the same expectation from probes that
            have the weights' own scale.
        every, average, spread, seed, group: as in `Refreshed`.
    """

    def __init__(
        self,
        probes: int = 1,
        *,
        form: Form = "diagonal",
        every: int = 10,
        average: float = 0.0,
        spread: int = 1,
        seed: int = 0,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        super().__init__(
            probes, form=form, product="double",
            every=every, average=average, spread=spread, seed=seed, group=group,
        )  # fmt: skip


class FiniteDifference(Probed):
    """Eq. 2 through any operator: ``Hz`` as a difference of gradients, z Rademacher.

    Cost: a refresh takes two extra steps a probe, one with ``sides=1``, and a copy of the weights.
    State: q, (2, rows). Needs: ``ragrad.backward(loss, closure=...)``, where the closure runs
    forward and returns the same loss anew. Weights, BatchNorm statistics and random state come
    back bit for bit.

    Args:
        probes: products per refresh.
        sides: 2: ``(g(theta + s z) - g(theta - s z)) / 2s``. 1: ``(g(theta + s z) - g) / s`` with
            the step's own gradient g, as `Probed` says under ``"one-sided"``.
        step: s as a share of the root mean square of the moved weights; None: a tenth, more for
            dtypes that round to more. Smaller steps come closer to the derivative of smooth
            networks, but where ReLUs switch they mostly measure noise.
        form: as in `Hutchinson`.
        every, average, spread, seed, group: as in `Refreshed`.
    """

    def __init__(
        self,
        probes: int = 1,
        *,
        sides: int = 2,
        step: float | None = None,
        form: Form = "diagonal",
        every: int = 10,
        average: float = 0.0,
        spread: int = 1,
        seed: int = 0,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        if sides not in (1, 2):
            raise ValueError(f"sides={sides}; a difference has 2, or 1 and the step's own gradient")
        super().__init__(
            probes, form=form, product="central" if sides == 2 else "one-sided", step=step,
            every=every, average=average, spread=spread, seed=seed, group=group,
        )  # fmt: skip


class RowQuadratic(Probed):
    """Eq. 1 to second order in a whole row: ``E = -g_i theta_i + 1/2 theta_i^T H theta_i``.

    Eq. 2 keeps the diagonal of H alone; this keeps all of H that removing the row sees, by one
    random sign per row. A row whose scale the loss does not see, behind a BatchNorm, has none.

    Cost, state and needs: of `Hutchinson` with ``product="double"``, of `FiniteDifference` with
    ``"central"`` or ``"one-sided"``.

    Args:
        probes: products per refresh.
        product, step: as in `Probed`.
        every, average, spread, seed, group: as in `Refreshed`.
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
