"""What a Gram matrix says of its pair of rows."""

from __future__ import annotations

import torch
from torch import Tensor


def cosine_similarity(gram: Tensor) -> Tensor:
    """The cosine of every row pair, (rows, 3) -> (rows,) float64; 0 where either row is zero.

    Rounded to float32 and back, so that cosines equal but for the last bits of their sums are
    equal when Eq. 6 compares them with their mean.
    """
    n_rgb, n_ir, dot = gram.unbind(1)
    zero = (n_rgb == 0) | (n_ir == 0)
    return torch.where(zero, 0.0, dot / (n_rgb.sqrt() * n_ir.sqrt())).float().double()


def matrices(rgb_rgb: Tensor, rgb_ir: Tensor, ir_rgb: Tensor, ir_ir: Tensor) -> Tensor:
    """``[[rgb_rgb, rgb_ir], [ir_rgb, ir_ir]]`` of every row, four (rows,) -> (rows, 2, 2).

    ``rgb_ir`` is the share of the infrared row in the new rgb row.
    """
    return torch.stack([rgb_rgb, rgb_ir, ir_rgb, ir_ir], 1).unflatten(1, (2, 2))
