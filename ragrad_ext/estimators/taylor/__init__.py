"""Eq. 2: Eq. 1 by a Taylor expansion in the weights."""

from .taylor import FiniteDifference, Hutchinson

__all__ = ["FiniteDifference", "Hutchinson"]
