"""PCGrad*: projecting conflicting gradients (Yu et al., 2020), row by row."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from ..rows.layout import Layout
from .gram import matrices


class PCGrad:
    """Where two rows point apart, each loses its component along the other's original row.

    ``dot < 0``: ``g_rgb <- g_rgb - (dot / |g_ir|^2) g_ir``, and the mirror for g_ir. A comparator
    of Table 8: PCGrad between the two modalities of every row, in place of tasks.
    """

    reads_reliability: ClassVar[bool] = False

    def __call__(self, gram: Tensor, reliability: Tensor | None, layout: Layout, /) -> Tensor:
        """As `Rule`; ``reliability`` and ``layout`` are not read."""
        n_rgb, n_ir, dot = gram.unbind(1)
        conflict = dot < 0
        onto_ir = torch.where(conflict, -dot / n_ir, 0.0)
        onto_rgb = torch.where(conflict, -dot / n_rgb, 0.0)
        one = torch.ones_like(dot)
        return matrices(one, onto_ir, onto_rgb, one)
