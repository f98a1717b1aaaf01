"""RGCR, Eq. 6-10: which rows conflict, and what becomes of them.

The literal reference, one layer at a time, in float64. Every backend must agree with it and
shares none of its formulas.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

Identify = Literal["dual", "cosine"]
Resolve = Literal["blend", "project"]


class Options(NamedTuple):
    """How conflicts are identified and resolved.

    Attributes:
        identify: ``"dual"``, Eq. 6, or ``"cosine"``: every ``cos < 0`` (Table 7, without DCCI).
        resolve: ``"blend"``, Eq. 8-10, or ``"project"``: Eq. 8 alone (Table 7, without RGGC).
        eps: the guard of Eq. 8 and 10 against 0/0, nothing more.
    """

    identify: Identify = "dual"
    resolve: Resolve = "blend"
    eps: float = 1e-30


class Layer(NamedTuple):
    """One corrected layer: the new gradients, then the four columns of `Conflicts`."""

    g_rgb: Tensor
    g_ir: Tensor
    cosine: Tensor
    gap: Tensor
    mask: Tensor
    strength: Tensor


def correct_layer(
    g_rgb: Tensor, g_ir: Tensor, r_rgb: Tensor, r_ir: Tensor, options: Options
) -> Layer:
    """Correct the gradients of one layer, out of place.

    Args:
        g_rgb, g_ir: (C_l, ...) gradients of one shape.
        r_rgb, r_ir: (C_l,) reliabilities in [0, 1].

    Returns:
        New gradients in the dtype and shape given. Rows outside the conflict set, and all rows
        of a layer that holds an inf or nan, are the old ones bit for bit.
    """
    rows_rgb, rows_ir = (g.double().reshape(g.shape[0], -1) for g in (g_rgb, g_ir))  # (C_l, N_l)
    r_rgb, r_ir = r_rgb.double(), r_ir.double()
    finite = rows_rgb.isfinite().all() & rows_ir.isfinite().all()

    cosine = cosine_similarity(rows_rgb, rows_ir)
    gap = (r_rgb - r_ir).abs()
    mask = identify_conflicts(cosine, gap, options.identify) & finite

    rgb_is_reliable = r_rgb >= r_ir  # Eq. 7; a tie is possible only under identify="cosine"
    strength = blending_weight(gap, r_rgb + r_ir, options)
    new_ir = resolve_conflict(rows_ir, rows_rgb, strength, options.eps)
    new_rgb = resolve_conflict(rows_rgb, rows_ir, strength, options.eps)

    return Layer(
        _rewrite(g_rgb, new_rgb, mask & ~rgb_is_reliable),
        _rewrite(g_ir, new_ir, mask & rgb_is_reliable),
        torch.where(finite, cosine, torch.nan).float(),
        gap.float(),
        mask,
        torch.where(mask, strength, 0.0).float(),
    )


def cosine_similarity(rows_rgb: Tensor, rows_ir: Tensor) -> Tensor:
    """Row-wise cosine, (C_l, N_l) x 2 -> (C_l,); 0 where either row is zero.

    Rounded to float32 and back, so that cosines equal but for the last bits of their sums are
    equal when Eq. 6 compares them with their mean.
    """
    dot = (rows_rgb * rows_ir).sum(1)
    norm_rgb, norm_ir = rows_rgb.square().sum(1).sqrt(), rows_ir.square().sum(1).sqrt()
    zero = (norm_rgb == 0) | (norm_ir == 0)
    return torch.where(zero, 0.0, dot / (norm_rgb * norm_ir)).float().double()


def identify_conflicts(cosine: Tensor, gap: Tensor, how: Identify) -> Tensor:
    """Eq. 6: the conflict set of one layer as a mask, (C_l,) x 2 -> (C_l,) bool."""
    negative = cosine < 0
    if how == "cosine":
        return negative
    # Without a negative cosine the mean is 0/0 = nan, and no cosine lies below it.
    mu_cos = torch.where(negative, cosine, 0.0).sum() / negative.sum()
    mu_gap = gap.sum() / gap.numel()  # not mean(): on CUDA it multiplies by a rounded 1/C_l
    return (cosine < mu_cos) & (gap > mu_gap)


def blending_weight(gap: Tensor, total: Tensor, options: Options) -> Tensor:
    """Eq. 10: lambda, (C_l,) in [1/2, sigmoid(1)]; 0 under ``resolve="project"``."""
    if options.resolve == "project":
        return torch.zeros_like(gap)
    return torch.sigmoid(gap / (total + options.eps))


def resolve_conflict(weak: Tensor, strong: Tensor, strength: Tensor, eps: float) -> Tensor:
    """Eq. 8, then Eq. 9: (C_l, N_l) x 2, (C_l,) -> (C_l, N_l)."""
    lam = strength[:, None]
    dot = (weak * strong).sum(1, keepdim=True)
    orthogonal = weak - dot / (strong.square().sum(1, keepdim=True) + eps) * strong  # Eq. 8
    return (1 - lam) * orthogonal + lam * strong  # Eq. 9


def _rewrite(old: Tensor, new_rows: Tensor, rewrite: Tensor) -> Tensor:
    """``old`` with the marked rows replaced; rounded once, to the dtype of ``old``.

    What lies beyond the dtype's range saturates: a correction never makes an inf of finite
    gradients, which no loss scaler would look for any more.
    """
    limit = torch.finfo(old.dtype).max
    new = new_rows.clamp(-limit, limit).reshape(old.shape).to(old.dtype)
    return torch.where(rewrite.view(-1, *[1] * (old.dim() - 1)), new, old)
