"""Rules: what a pair of gradient rows becomes, one 2x2 matrix per row.

A rule maps the Gram matrix of every row pair and their reliability to a matrix M, and the pair
becomes ``[g_rgb; g_ir] <- M [g_rgb; g_ir]``; the identity where nothing changes. These are the
literal rules, and the reference of every kernel. A rule of one's own is a function.
"""

from ..rows.layout import Layout
from .decide import Rule
from .imtl import IMTL
from .pcgrad import PCGrad
from .ragrad import RaGradRule

__all__ = ["IMTL", "Layout", "PCGrad", "RaGradRule", "Rule"]
