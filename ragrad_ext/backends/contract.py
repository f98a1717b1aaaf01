"""The contract that every backend fulfils."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ..bucket import Bucket
from ..conflicts import Conflicts
from ..rgcr import Options

Rows = Sequence[Tensor | None]


class History(NamedTuple):
    """The memory of Eq. 4; modality first: index 0 is rgb, 1 is ir.

    Attributes:
        mean: mu, for each modality one (C_l, ...) tensor per pair, channel axis first.
            The backend updates it in place.
        known: (L,) bool, whether the pair was observed before. If not, mu becomes its gradient.
        weight: (L,) float64, w of this step: ``mu <- mu + w (g - mu)``.
    """

    mean: tuple[Sequence[Tensor], Sequence[Tensor]]
    known: Tensor
    weight: Tensor


class RowSums(NamedTuple):
    """What REPA needs of the gradients; modality first.

    Attributes:
        dot: (2, rows) float64, ``sum_j g_j theta_j``; 0 where no weight was given.
        deviation: (2, rows) float64, ``mean_j (g_j - mu_j)^2`` against the mu *before* this
            step; 0 without history.
        observed: (L,) bool; False for a pair that was skipped or held an inf or nan in either
            gradient: its sums are 0 and its mu is what it was.
    """

    dot: Tensor
    deviation: Tensor
    observed: Tensor


class Backend(Protocol):
    """Two verbs. Both work in place, wait for nothing and are deterministic."""

    name: str

    def unusable(self, device: torch.device) -> str | None:
        """Why this backend cannot serve ``device`` here; None if it can."""

    def correct_(self, bucket: Bucket, reliability: Tensor, options: Options) -> Conflicts:
        """Eq. 6-10 from a given reliability, (2, rows) float32."""

    def observe_(
        self, bucket: Bucket, weights: tuple[Rows, Rows], history: History | None
    ) -> RowSums:
        """One pass over gradients, weights and history. A weight of None is not read."""
