"""Estimators that were measured and are not recommended."""
