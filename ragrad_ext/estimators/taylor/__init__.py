"""Eq. 2: Eq. 1 by a Taylor expansion in the weights."""
