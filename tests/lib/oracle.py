"""Eq. 6-10 in plain Python numbers, row by row: what the PyTorch reference itself is checked by."""

from __future__ import annotations

import math
from fractions import Fraction

from torch import Tensor


def correct(g_rgb: Tensor, g_ir: Tensor, r_rgb: Tensor, r_ir: Tensor, eps: float = 1e-30) -> dict:
    """One layer. Sums are exact rationals, so nothing here depends on an order of summation."""
    rgb = [list(map(Fraction, row.flatten().tolist())) for row in g_rgb.double()]
    ir = [list(map(Fraction, row.flatten().tolist())) for row in g_ir.double()]
    rel = list(zip(r_rgb.double().tolist(), r_ir.double().tolist(), strict=True))
    cosines = [cosine(a, b) for a, b in zip(rgb, ir, strict=True)]
    negative = [c for c in cosines if c < 0]
    mu_cos = math.fsum(negative) / len(negative) if negative else -math.inf
    gaps = [abs(a - b) for a, b in rel]
    mu_gap = math.fsum(gaps) / len(gaps)
    mask = [c < mu_cos and g > mu_gap for c, g in zip(cosines, gaps, strict=True)]
    margin = [min(abs(c - mu_cos), abs(g - mu_gap)) for c, g in zip(cosines, gaps, strict=True)]
    strength = [0.0] * len(mask)
    for i, conflict in enumerate(mask):
        if not conflict:
            continue
        (a, b), rgb_reliable = rel[i], rel[i][0] > rel[i][1]
        strength[i] = 1 / (1 + math.exp(-abs(a - b) / (a + b + eps)))
        weak, strong = (ir, rgb) if rgb_reliable else (rgb, ir)
        weak[i] = blend(weak[i], strong[i], strength[i], eps)
    return {
        "rgb": rgb, "ir": ir, "cosine": cosines, "mask": mask, "strength": strength,
        "margin": margin,
    }  # fmt: skip


def cosine(a: list[Fraction], b: list[Fraction]) -> float:
    aa, bb = sum(x * x for x in a), sum(x * x for x in b)
    if not aa or not bb:
        return 0.0
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    # The square of the cosine is rational and near 1: no overflow, whatever the scale.
    return math.copysign(math.sqrt(dot * dot / (aa * bb)), dot)


def blend(weak: list[Fraction], strong: list[Fraction], lam: float, eps: float) -> list[Fraction]:
    dot = sum(x * y for x, y in zip(weak, strong, strict=True))
    share = dot / (sum(y * y for y in strong) + Fraction(eps))
    lam_ = Fraction(lam)
    return [(1 - lam_) * (x - share * y) + lam_ * y for x, y in zip(weak, strong, strict=True)]


def pcgrad(g_rgb: Tensor, g_ir: Tensor) -> tuple[list[list[Fraction]], list[list[Fraction]]]:
    """Where two rows point apart, each minus its component along the other's old row."""
    rgb, ir = rows_of(g_rgb), rows_of(g_ir)
    return (
        [without(a, b) for a, b in zip(rgb, ir, strict=True)],
        [without(b, a) for a, b in zip(rgb, ir, strict=True)],
    )


def without(row: list[Fraction], other: list[Fraction]) -> list[Fraction]:
    dot = sum(x * y for x, y in zip(row, other, strict=True))
    if dot >= 0:
        return row
    return [x - dot / sum(z * z for z in other) * y for x, y in zip(row, other, strict=True)]


def imtl(g_rgb: Tensor, g_ir: Tensor) -> tuple[list[list[Fraction]], list[list[Fraction]]]:
    """Both rows scaled to the harmonic mean of their norms; zero rows leave their pair alone."""
    pairs = [scaled(a, b) for a, b in zip(rows_of(g_rgb), rows_of(g_ir), strict=True)]
    return [a for a, _ in pairs], [b for _, b in pairs]


def scaled(a: list[Fraction], b: list[Fraction]) -> tuple[list[Fraction], list[Fraction]]:
    aa, bb = sum(x * x for x in a), sum(x * x for x in b)
    if not aa or not bb:
        return a, b
    ratio = square_root(bb / aa)  # |b| / |a|
    return [2 * ratio / (1 + ratio) * x for x in a], [2 / (1 + ratio) * x for x in b]


def square_root(x: Fraction) -> Fraction:
    """Right to 1e-30, relative to x."""
    shift = 10**40
    scale = Fraction(math.isqrt(int(x * shift * shift)), shift)
    return scale if scale else Fraction(math.isqrt(int(x * shift**4)), shift**2)


def rows_of(g: Tensor) -> list[list[Fraction]]:
    return [list(map(Fraction, row.flatten().tolist())) for row in g.double()]
