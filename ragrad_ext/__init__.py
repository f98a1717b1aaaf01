"""Reliability-guided gradient correction for two-stream visible/infrared detectors."""

from . import audit
from .conflicts import Conflicts
from .correct import correct_
from .effectiveness import Effectiveness, FirstOrder
from .gate import Gate
from .gate_quadratic import GateQuadratic
from .gauss_newton import GaussNewtonBartlett, sampled_cross_entropy
from .pairing import Pairs, pair_parameters
from .reliability import Reliability
from .removal import Removal
from .repa import Repa
from .taylor import FiniteDifference, Fisher, Hutchinson, RowQuadratic
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
