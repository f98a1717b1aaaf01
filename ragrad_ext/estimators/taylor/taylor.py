"""Eq. 2: effectiveness by a second-order Taylor expansion."""

from __future__ import annotations

from typing import Any

from .probed import Probed
from .probes import Form


class Hutchinson(Probed):
    """Eq. 2 as the paper has it: ``h = E_z[z * Hz]`` by exact double backward, z Rademacher.

    Cost: a refresh takes about three extra steps and the memory of a second graph.
    State: q, (2, rows). Needs: ``ragrad.backward(loss)``, and a double backward of every operator.

    Args:
        probes: products per refresh.
        form: ``"diagonal"``: the paper's; ``"weighted"``: the same expectation from probes that
            have the scale of the weights.
        schedule: fields of `Schedule`.

    Raises:
        ValueError: an option out of its range.
    """

    def __init__(self, probes: int = 1, *, form: Form = "diagonal", **schedule: Any) -> None:
        super().__init__(probes, form=form, product="double", **schedule)


class FiniteDifference(Probed):
    """Eq. 2 through any operator: ``Hz`` as a difference of gradients, z Rademacher.

    Cost: a refresh takes two extra steps per probe, or one with ``sides=1``, and a copy of the
    weights. State: q, (2, rows). Needs: ``ragrad.backward(loss, closure=...)``, where the closure
    runs forward and returns the same loss again. Weights, BatchNorm statistics and random state are
    restored bit for bit.

    Args:
        probes: products per refresh.
        sides: 2: ``(g(theta + s z) - g(theta - s z)) / 2s``. 1: ``(g(theta + s z) - g) / s`` with
            the step's own gradient g, as in `Probed` under ``"one-sided"``.
        step: s as a share of the root mean square of the moved weights. None: a tenth, or more for
            dtypes that round more. In smooth networks a smaller step is closer to the derivative;
            where ReLUs switch it mostly measures noise.
        form: as in `Hutchinson`.
        schedule: fields of `Schedule`.

    Raises:
        ValueError: an option out of its range.
    """

    def __init__(
        self,
        probes: int = 1,
        *,
        sides: int = 2,
        step: float | None = None,
        form: Form = "diagonal",
        **schedule: Any,
    ) -> None:
        if sides not in (1, 2):
            raise ValueError(f"sides={sides}; pass 2, or 1 to use the step's own gradient")
        product = "central" if sides == 2 else "one-sided"
        super().__init__(probes, form=form, product=product, step=step, **schedule)  # type: ignore[arg-type]
