"""IMTL*: impartial multi-task learning (Liu et al., 2021), row by row."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from ..rows.layout import Layout
from .gram import matrices


class IMTL:
    """Impartial magnitudes: both rows of a pair end with the same norm.

    Equal projections of the sum on both unit rows give the weights
    ``w_rgb = |g_ir| / (|g_rgb| + |g_ir|)`` and its mirror; each row is scaled by twice its weight.
    A comparator of Table 8. A zero row leaves its pair alone.
    """

    reads_reliability: ClassVar[bool] = False

    def __call__(self, gram: Tensor, reliability: Tensor | None, layout: Layout, /) -> Tensor:
        """As `Rule`; ``reliability`` and ``layout`` are not read."""
        rgb, ir = gram[:, 0].sqrt(), gram[:, 1].sqrt()
        zero = (rgb == 0) | (ir == 0)
        w_rgb = torch.where(zero, 0.5, ir / (rgb + ir))
        w_ir = torch.where(zero, 0.5, rgb / (rgb + ir))
        nothing = torch.zeros_like(rgb)
        return matrices(2 * w_rgb, nothing, nothing, 2 * w_ir)
