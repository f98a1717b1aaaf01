"""How the features of two streams become one."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

Levels = OrderedDict[str, Tensor]  # a pyramid: name -> (B, C, H, W), fine to coarse


class Fuse(nn.Module):
    """Adds two pyramids level by level. A forward hook here sees the fused features."""

    def forward(self, rgb: Levels, ir: Levels) -> Levels:
        return OrderedDict((name, rgb[name] + ir[name]) for name in rgb)
