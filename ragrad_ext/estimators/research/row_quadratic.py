"""Eq. 1 to second order in whole rows."""

from __future__ import annotations

from torch import distributed as dist

from ..taylor.probed import Probed, Product


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
