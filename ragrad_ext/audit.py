"""Eq. 1 itself, for judging estimates: every channel really removed."""

from .estimators.counterfactual import Counterfactual, counterfactual

__all__ = ["Counterfactual", "counterfactual"]
