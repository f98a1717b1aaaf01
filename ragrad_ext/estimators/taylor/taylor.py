"""Eq. 2: effectiveness by a second-order Taylor expansion, by where its Hessian comes from."""

from __future__ import annotations

from torch import distributed as dist

from .probed import Probed
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
