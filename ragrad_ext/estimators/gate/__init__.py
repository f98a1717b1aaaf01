"""Eq. 1 to first order in a gate on each row's output: the default estimator."""

from .gate import Gate

__all__ = ["Gate"]
