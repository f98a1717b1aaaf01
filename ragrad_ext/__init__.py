"""Reliability-guided gradient correction for two-stream visible/infrared detectors."""

import warnings
from typing import Any

from . import audit, rules
from .correct import correct_
from .estimators import Effectiveness, FiniteDifference, FirstOrder, Gate, Hutchinson
from .pairs import Pairs, pair_parameters
from .repa import Repa
from .rows.conflicts import Conflicts
from .rows.reliability import Reliability
from .training import RaGrad
from .version import __version__

__all__ = [
    "Conflicts",
    "Effectiveness",
    "FiniteDifference",
    "FirstOrder",
    "Gate",
    "Hutchinson",
    "Pairs",
    "RaGrad",
    "Reliability",
    "Repa",
    "__version__",
    "audit",
    "correct_",
    "pair_parameters",
    "rules",
]

_MOVED_TO_RESEARCH = (
    "Fisher",
    "GateQuadratic",
    "GaussNewtonBartlett",
    "Removal",
    "RowQuadratic",
    "sampled_cross_entropy",
)


def __getattr__(name: str) -> Any:
    if name in _MOVED_TO_RESEARCH:
        from .estimators import research

        warnings.warn(
            f"ragrad_ext.{name} will be removed in the next version; import it from "
            "ragrad_ext.estimators.research",
            DeprecationWarning,
            stacklevel=2,
        )
        return getattr(research, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
