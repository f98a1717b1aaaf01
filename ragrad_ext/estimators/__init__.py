"""Eq. 1 estimated: what the loss would lose without a channel.

These are the estimators that docs/effectiveness.md recommends, and what a new one is made from
(docs/adding_an_estimator.md). Others that were measured are in ``ragrad_ext.estimators.research``.
"""

from .effectiveness import Effectiveness, FirstOrder
from .gate import Gate
from .refresh import Refreshed
from .schedule import Schedule
from .taylor import FiniteDifference, Hutchinson

__all__ = [
    "Effectiveness",
    "FiniteDifference",
    "FirstOrder",
    "Gate",
    "Hutchinson",
    "Refreshed",
    "Schedule",
]
