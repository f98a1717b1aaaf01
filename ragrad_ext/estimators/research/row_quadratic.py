"""Eq. 1 to second order in whole rows."""

from __future__ import annotations

from typing import Any

from ..taylor.probed import Probed, Product


class RowQuadratic(Probed):
    """Eq. 1 to second order in a whole row: ``E = -g_i theta_i + 1/2 theta_i^T H theta_i``.

    Eq. 2 keeps only the diagonal of H. This keeps all of H that removing the row sees, by one
    random sign per row. The term is 0 for a row before a BatchNorm, because the loss does not
    depend on its scale.

    Cost, state and needs: those of `Hutchinson` with ``product="double"``, those of
    `FiniteDifference` with ``"central"`` or ``"one-sided"``.

    Args:
        probes: products per refresh.
        product, step: as in `Probed`.
        schedule: fields of `Schedule`.
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
