"""Backends: who computes the verbs of a correction, and the choice among them."""

from ..rows.sums import History, Rows, RowSums, Sensitivity
from .contract import Backend, Unavailable
from .operators import Traced
from .registry import BACKENDS, select, with_backend

__all__ = [
    "BACKENDS",
    "Backend",
    "History",
    "RowSums",
    "Rows",
    "Sensitivity",
    "Traced",
    "Unavailable",
    "select",
    "with_backend",
]
