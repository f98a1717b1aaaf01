"""The contract that every backend fulfils."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ..rows.bucket import Bucket
from ..rows.conflicts import Conflicts
from ..rules.ragrad import Options

Rows = Sequence[Tensor | None]


class History(NamedTuple):
    """The memory of Eq. 4; modality first: index 0 is rgb, 1 is ir.

    Attributes:
        mean: mu, one tensor per pair and modality, shaped like its gradient. The backend updates
            it in place: ``mu <- mu + w (g - mu)``, element by element, where g is finite.
        weight: (2, rows) float64, w of this step.
    """

    mean: tuple[Sequence[Tensor], Sequence[Tensor]]
    weight: Tensor


class RowSums(NamedTuple):
    """What REPA needs of the gradients; modality first.

    Attributes:
        dot: (2, rows) float64, ``sum_j g_j theta_j``; 0 where no weight was given.
        deviation: (2, rows) float64, ``mean_j (g_j - mu_j)^2`` against the mu *before* this
            step; 0 without history.
        observed: (2, rows) bool; False for the rows of a skipped pair and for rows that held an
            inf or nan: their sums are 0.
        twin_dots: (rows, 3) float64, ``|g_rgb|^2, |g_ir|^2, g_rgb . g_ir`` for the correction
            that follows, from a backend that found them in the same pass.
    """

    dot: Tensor
    deviation: Tensor
    observed: Tensor
    twin_dots: Tensor | None = None


class Sensitivity(NamedTuple):
    """The state of Eq. 4; `rate_and_correct_` updates both tensors in place.

    Attributes:
        score: (2, rows) float64, S.
        steps: (2, rows) float64, how often each row was observed.
        alpha: decay of S.
    """

    score: Tensor
    steps: Tensor
    alpha: float


class Unavailable(RuntimeError):
    """A backend turns out to be of no use on a device, and has changed nothing yet.

    From then on its `unusable` gives the reason.
    """


class Backend(Protocol):
    """The verbs of a step: observe, then rate and correct; or correct alone, by a given R.

    All wait for nothing and are deterministic.

    The first one of a step may raise `Unavailable`, before anything is changed.
    """

    name: str

    def unusable(self, device: torch.device) -> str | None:
        """Why this backend cannot serve ``device`` here; None if it can."""

    def correct_(
        self,
        bucket: Bucket,
        reliability: Tensor,
        options: Options,
        twin_dots: Tensor | None = None,
    ) -> Conflicts:
        """Eq. 6-10 from a given reliability, (2, rows) float32.

        ``twin_dots`` are those of this backend's own ``observe_`` of the same gradients.
        """

    def observe_(
        self, bucket: Bucket, weights: tuple[Rows, Rows], history: History | None
    ) -> RowSums:
        """One pass over gradients, weights and history. A weight of None is not read.

        Weights are shaped like their gradients.
        """

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
        """Eq. 3-10: S moves on, and the gradients are corrected by the R just found.

        Args:
            sums: what this backend's own ``observe_`` found in the same gradients.
            effect: E of Eq. 1, (2, rows) float64; None leaves that factor of R out.
            groups: the sizes of the groups of consecutive rows that Eq. 3 pools; whole pairs.
            by_sensitivity: whether S is a factor of R.

        Returns:
            R of every row, (2, rows) float32, and what `correct_` returns.
        """
