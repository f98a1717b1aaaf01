"""Which RGB weight is the twin of which infrared weight."""

from .pairing import LeftOut, Pairs, pair_parameters

__all__ = ["LeftOut", "Pairs", "pair_parameters"]
