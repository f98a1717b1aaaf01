"""Rate: Eq. 3-5, a little arithmetic per row, none per weight."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..rows.sums import RowSums, Sensitivity


class Moments(NamedTuple):
    """Of one quantity in each of G groups of rows, both modalities pooled (Eq. 3).

    Moments of parts of a group, as sharded training has them, combine to those of the whole.

    Attributes:
        known: (G,) float64, how many values are known.
        mean: (G,) float64; nan without any.
        squares: (G,) float64, ``sum (x - mean)^2``.
        largest: (G,) float64, the largest magnitude.
    """

    known: Tensor
    mean: Tensor
    squares: Tensor
    largest: Tensor


def rate_(
    sums: RowSums,
    effect: Tensor | None,
    sensitivity: Sensitivity,
    groups: Sequence[int],
    *,
    by_sensitivity: bool,
    reduce: Callable[[Moments], Moments] | None = None,
) -> Tensor:
    """Eq. 3-5: S moves on, and R of every row.

    Args:
        sums: of this step's gradients.
        effect: E of Eq. 1, (2, rows) float64; None leaves that factor of R out.
        groups: the sizes of the groups of consecutive rows that Eq. 3 pools.
        by_sensitivity: whether S is a factor of R.
        reduce: makes the moments of whole groups from this process's own, where other processes
            hold more of their rows; None: this process holds all.

    Returns:
        (2, rows) float32 in [0, 1].
    """
    score, steps, alpha = sensitivity
    seen = sums.observed
    deviation = torch.where(steps > 0, sums.deviation, 0.0)  # none without a history
    score.copy_(torch.where(seen, alpha * score + (1 - alpha) * deviation, score))  # Eq. 4
    steps += seen
    r = torch.ones_like(score)
    if effect is not None:
        r *= normalise(effect, seen, groups, reduce)
    if by_sensitivity:
        r *= normalise(score, seen, groups, reduce)  # Eq. 5
    return r.float()


def normalise(
    x: Tensor,
    observed: Tensor,
    groups: Sequence[int],
    reduce: Callable[[Moments], Moments] | None = None,
) -> Tensor:
    """Eq. 3: ``sigmoid((x - mean) / std)``, population std, over groups of consecutive rows.

    Args:
        x: (2, rows) float64; both modalities of a group are pooled.
        observed: (2, rows) bool. Other rows, and values that are not finite, stay out of the
            moments and get 1/2.
        groups: the sizes of the groups.
        reduce: as in `rate_`.

    Returns:
        (2, rows) in [0, 1]; 1/2 where the group has no spread: a std below a few float32 ulps of
        its largest magnitude. This guard is relative, so the scale of x never matters.
    """
    known = observed & x.isfinite()
    parts = list(zip(x.split(list(groups), 1), known.split(list(groups), 1), strict=True))
    pooled = [_moments(*part) for part in parts]
    if reduce is not None:
        whole = reduce(_stacked(pooled, x))
        pooled = [Moments(*of_group) for of_group in zip(*whole, strict=True)]
    out = []
    for (part, ok), (n, mean, squares, largest) in zip(parts, pooled, strict=True):
        std = (squares / n).sqrt()
        spread = std > 4 * torch.finfo(torch.float32).eps * largest  # nan > 0 is False
        out.append(torch.sigmoid(torch.where(spread & ok, (part - mean) / std, 0.0)))
    return torch.cat(out, 1) if out else x


def moments(x: Tensor, known: Tensor, groups: Sequence[int]) -> Moments:
    """What Eq. 3 needs of each group, from its known values."""
    parts = zip(x.split(list(groups), 1), known.split(list(groups), 1), strict=True)
    return _stacked([_moments(*part) for part in parts], x)


def _moments(x: Tensor, known: Tensor) -> Moments:
    """Of one group, each a single number."""
    n = known.sum()
    x = torch.where(known, x, 0.0)
    mean = x.sum() / n
    squares = torch.where(known, x - mean, 0.0).square().sum()
    largest = x.abs().max() if x.numel() else x.new_zeros(())
    return Moments(n, mean, squares, largest)


def _stacked(found: Sequence[Moments], like: Tensor) -> Moments:
    """Those of all groups, each (G,) and of the dtype of ``like``."""
    if not found:
        return Moments(*(like.new_zeros(0) for _ in range(4)))
    return Moments(*(torch.stack(column).to(like.dtype) for column in zip(*found, strict=True)))
