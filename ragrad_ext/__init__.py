"""Reliability-guided gradient correction for two-stream visible/infrared detectors."""

from . import audit
from .conflicts import Conflicts
from .correct import correct_
from .estimators.effectiveness import Effectiveness, FirstOrder
from .estimators.gate import Gate
from .estimators.gate_quadratic import GateQuadratic
from .estimators.gauss_newton import GaussNewtonBartlett, sampled_cross_entropy
from .estimators.removal import Removal
from .estimators.taylor import FiniteDifference, Fisher, Hutchinson, RowQuadratic
from .pairing import Pairs, pair_parameters
from .reliability import Reliability
from .repa import Repa
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
