"""Eq. 3-5 in plain PyTorch, on any device: a little arithmetic per row, none per weight."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from ..rows.bucket import Bucket
from ..rows.conflicts import Conflicts
from ..rules.ragrad import Options
from .contract import RowSums, Sensitivity


class Rating(ABC):
    """The verb ``rate_and_correct_`` for backends that have no better one: first, then."""

    @abstractmethod
    def correct_(
        self,
        bucket: Bucket,
        reliability: Tensor,
        options: Options,
        twin_dots: Tensor | None = None,
    ) -> Conflicts:
        """See `Backend`."""

    def rate_and_correct_(
        self,
        bucket: Bucket,
        sums: RowSums,
        effect: Tensor | None,
        sensitivity: Sensitivity,
        groups: Sequence[int],
        options: Options,
        *,
        by_sensitivity: bool,
    ) -> tuple[Tensor, Conflicts]:
        r = rate_(sums, effect, sensitivity, groups, by_sensitivity=by_sensitivity)
        return r, self.correct_(bucket, r, options, sums.twin_dots)


def rate_(
    sums: RowSums,
    effect: Tensor | None,
    sensitivity: Sensitivity,
    groups: Sequence[int],
    *,
    by_sensitivity: bool,
) -> Tensor:
    """Eq. 3-5: S moves on, and R of every row, (2, rows) float32."""
    score, steps, alpha = sensitivity
    seen = sums.observed
    deviation = torch.where(steps > 0, sums.deviation, 0.0)  # none without a history
    score.copy_(torch.where(seen, alpha * score + (1 - alpha) * deviation, score))  # Eq. 4
    steps += seen
    r = torch.ones_like(score)
    if effect is not None:
        r *= normalise(effect, seen, groups)
    if by_sensitivity:
        r *= normalise(score, seen, groups)  # Eq. 5
    return r.float()


def normalise(x: Tensor, observed: Tensor, parts: Sequence[int]) -> Tensor:
    """Eq. 3: ``sigmoid((x - mean) / std)``, population std, over groups of consecutive rows.

    Args:
        x: (2, rows) float64; both modalities of a group are pooled.
        observed: (2, rows) bool. Other rows, and values that are not finite, stay out of the
            moments and get 1/2.
        parts: the sizes of the groups.

    Returns:
        (2, rows) in [0, 1]; 1/2 where the group has no spread: a std below a few float32 ulps of
        its largest magnitude. This guard is relative, so the scale of x never matters.
    """
    known = observed & x.isfinite()
    groups = zip(x.split(list(parts), 1), known.split(list(parts), 1), strict=True)
    return torch.cat([_normalise(*group) for group in groups], 1) if parts else x


def _normalise(x: Tensor, known: Tensor) -> Tensor:
    if x.numel() == 0:
        return x
    n = known.sum()
    x = torch.where(known, x, 0.0)
    deviation = torch.where(known, x - x.sum() / n, 0.0)
    std = (deviation.square().sum() / n).sqrt()
    spread = std > 4 * torch.finfo(torch.float32).eps * x.abs().max()
    return torch.sigmoid(torch.where(spread, deviation / std, 0.0))  # nan > 0 is False
