"""What is known of every row: its sums over one step, and its history."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

Rows = Sequence[Tensor | None]


class History(NamedTuple):
    """The memory of Eq. 4; modality first: index 0 is rgb, 1 is ir.

    Attributes:
        mean: mu, one tensor per pair and modality, shaped like its gradient. It is updated in
            place: ``mu <- mu + w (g - mu)``, element by element, where g is finite.
        step_size: (2, rows) float64, w of this step.
    """

    mean: tuple[Sequence[Tensor], Sequence[Tensor]]
    step_size: Tensor


class RowSums(NamedTuple):
    """What one step's gradients say of every row; modality first.

    Attributes:
        gram: (rows, 3) float64, ``|g_rgb|^2, |g_ir|^2, g_rgb . g_ir``: the Gram matrix of the pair.
            Not finite where a gradient is not.
        g_theta: (2, rows) float64, ``sum_j g_j theta_j``; 0 where no weight was given.
        deviation: (2, rows) float64, ``mean_j (g_j - mu_j)^2`` against the mu *before* this
            step; 0 without history.
        observed: (2, rows) bool; False for the rows of a skipped pair and for rows that held an
            inf or nan: their ``g_theta`` and ``deviation`` are 0.
    """

    gram: Tensor
    g_theta: Tensor
    deviation: Tensor
    observed: Tensor


class Sensitivity(NamedTuple):
    """The state of Eq. 4; rating updates both tensors in place.

    Attributes:
        score: (2, rows) float64, S.
        steps: (2, rows) float64, how often each row was observed.
        alpha: decay of S.
    """

    score: Tensor
    steps: Tensor
    alpha: float
