"""The estimators of Eq. 1 that are compared, by the names that result files give them."""

from __future__ import annotations

from collections.abc import Callable

from ragrad_ext import Effectiveness, FiniteDifference, FirstOrder, Gate, Hutchinson
from ragrad_ext.estimators.research import Fisher, GateQuadratic, GaussNewtonBartlett, RowQuadratic

# A refresh on every step: what is held and averaged over steps is another question.
ESTIMATORS: dict[str, Callable[[], Effectiveness]] = {
    "Hutchinson, 1 probe": lambda: Hutchinson(1, every=1),
    "Hutchinson, 16 probes": lambda: Hutchinson(16, every=1),
    "Hutchinson, 16 weighted probes": lambda: Hutchinson(16, form="weighted", every=1),
    "FiniteDifference, 1 probe": lambda: FiniteDifference(1, every=1),
    "FiniteDifference, 1 probe, step 0.01": lambda: FiniteDifference(1, every=1, step=0.01),
    "FiniteDifference, 16 probes": lambda: FiniteDifference(16, every=1),
    "FiniteDifference, 1 probe, one-sided": lambda: FiniteDifference(1, sides=1, every=1),
    "RowQuadratic, 1 probe": lambda: RowQuadratic(1, every=1),
    "RowQuadratic, 4 probes": lambda: RowQuadratic(4, every=1),
    "RowQuadratic, 4 probes, central": lambda: RowQuadratic(4, product="central", every=1),
    "RowQuadratic, 1 probe, one-sided": lambda: RowQuadratic(1, product="one-sided", every=1),
    "GateQuadratic, 1 probe": lambda: GateQuadratic(1, every=1),
    "GateQuadratic, 4 probes": lambda: GateQuadratic(4, every=1),
    "GateQuadratic, 4 probes, central": lambda: GateQuadratic(4, product="central", every=1),
    "GateQuadratic, 1 probe, one-sided": lambda: GateQuadratic(1, product="one-sided", every=1),
    "GaussNewtonBartlett, 1 draw": lambda: GaussNewtonBartlett(1, every=1),
    "Fisher": lambda: Fisher(every=1),
    "FirstOrder": FirstOrder,
    "Gate": Gate,
}
DOUBLE_BACKWARD = (
    "Hutchinson, 1 probe",
    "Hutchinson, 16 probes",
    "Hutchinson, 16 weighted probes",
    "RowQuadratic, 1 probe",
    "RowQuadratic, 4 probes",
    "GateQuadratic, 1 probe",
    "GateQuadratic, 4 probes",
)


def available(
    *, double_backward: bool, likelihood: bool, quick: bool = False
) -> dict[str, Callable[[], Effectiveness]]:
    """Those that a network allows: with second derivatives, with labels that it can draw.

    Without the longest ones under ``quick``.
    """
    return {
        name: make
        for name, make in ESTIMATORS.items()
        if (double_backward or name not in DOUBLE_BACKWARD)
        and (likelihood or not name.startswith("GaussNewton"))
        and not (quick and "16" in name)
    }
