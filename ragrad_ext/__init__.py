"""Reliability-guided gradient correction for two-stream visible/infrared detectors."""

from . import audit
from .correct import correct_
from .estimators.effectiveness import Effectiveness, FirstOrder
from .estimators.gate.gate import Gate
from .estimators.research.fisher import Fisher
from .estimators.research.gate_quadratic import GateQuadratic
from .estimators.research.gauss_newton import GaussNewtonBartlett, sampled_cross_entropy
from .estimators.research.removal import Removal
from .estimators.research.row_quadratic import RowQuadratic
from .estimators.taylor.taylor import FiniteDifference, Hutchinson
from .pairs.pairing import Pairs, pair_parameters
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
    "Fisher",
    "Gate",
    "GateQuadratic",
    "GaussNewtonBartlett",
    "Hutchinson",
    "Pairs",
    "RaGrad",
    "Reliability",
    "Removal",
    "Repa",
    "RowQuadratic",
    "__version__",
    "audit",
    "correct_",
    "pair_parameters",
    "sampled_cross_entropy",
]
