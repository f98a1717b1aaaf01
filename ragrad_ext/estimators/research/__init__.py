"""Estimators that were measured and are not recommended; docs/effectiveness.md says why.

They work and are tested like the others.
"""

from .fisher import Fisher
from .gate_quadratic import GateQuadratic
from .gauss_newton import GaussNewtonBartlett, sampled_cross_entropy
from .removal import Removal
from .row_quadratic import RowQuadratic

__all__ = [
    "Fisher",
    "GateQuadratic",
    "GaussNewtonBartlett",
    "Removal",
    "RowQuadratic",
    "sampled_cross_entropy",
]
