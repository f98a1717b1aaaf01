"""Reliability-guided gradient correction for two-stream visible/infrared detectors."""

from . import audit
from .conflicts import Conflicts
from .correct import correct_
from .effectiveness import Effectiveness, FirstOrder
from .gate import Gate
from .pairing import Pairs, pair_parameters
from .reliability import Reliability
from .repa import Repa
from .taylor import FiniteDifference, Fisher, Hutchinson
from .training import RaGrad
from .version import __version__

__all__ = [
    "Conflicts",
    "Effectiveness",
    "FiniteDifference",
    "FirstOrder",
    "Fisher",
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
]
