"""Eq. 1 estimated: what the loss would lose without a channel.

These are the estimators that docs/effectiveness.md recommends, and their interface. Others that
were measured are in ``ragrad_ext.estimators.research``.
"""

from .effectiveness import Effectiveness, FirstOrder
from .gate import Gate
from .taylor import FiniteDifference, Hutchinson

__all__ = ["Effectiveness", "FiniteDifference", "FirstOrder", "Gate", "Hutchinson"]
