"""The contract that every backend fulfils."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from ..rows.bucket import Bucket
from ..rows.conflicts import Conflicts
from ..rows.sums import History, Rows, RowSums, Sensitivity
from ..rules.ragrad import RaGradRule


class Unavailable(RuntimeError):
    """Raised when a backend cannot run on a device; nothing has been modified.

    From then on its `unusable` gives the reason.
    """


class Backend(Protocol):
    """The verbs of a correction.

    Any rule takes two of them: `observe_`, then, once R and the matrix of every row are known,
    `apply_`. Between them `ragrad_ext.reference.rate_` and `ragrad_ext.rules.decide` do a little
    arithmetic per row. For RaGrad's own rule the verbs after one another are fused, with the same
    results: `decide_and_apply_` by a given R, `rate_and_apply_` after an observation.

    Nothing here waits for the device, and all is deterministic. Each verb may raise `Unavailable`
    before it changes anything; another backend can then do the same.
    """

    name: str

    def unusable(self, device: torch.device) -> str | None:
        """Why this backend cannot serve ``device`` here; None if it can."""

    def observe_(
        self, bucket: Bucket, weights: tuple[Rows, Rows], history: History | None
    ) -> RowSums:
        """One pass over gradients, weights and history; ``history.mean`` moves on (Eq. 4).

        A weight of None is not read. Weights and means are shaped like their gradients.
        """

    def apply_(self, bucket: Bucket, mix: Tensor) -> None:
        """``[g_rgb; g_ir] <- M [g_rgb; g_ir]``, row by row; results beyond the dtype saturate.

        A gradient row whose row of M is that of the identity keeps its bytes; a pair whose M is
        the identity is not read.

        Args:
            mix: (rows, 2, 2) float64, M of every row; finite, and the identity where a gradient is
                not finite.
        """

    def decide_and_apply_(self, bucket: Bucket, reliability: Tensor, rule: RaGradRule) -> Conflicts:
        """Eq. 6-10 from a given R, (2, rows) float32: one pass over the gradients."""

    def rate_and_apply_(
        self,
        bucket: Bucket,
        sums: RowSums,
        effect: Tensor | None,
        sensitivity: Sensitivity,
        groups: Sequence[int],
        rule: RaGradRule,
        *,
        by_sensitivity: bool,
    ) -> tuple[Tensor, Conflicts]:
        """Eq. 3-10 after `observe_`: S moves on, and the gradients are corrected by the new R.

        Args:
            sums: what ``observe_`` found in the same gradients.
            effect: E of Eq. 1, (2, rows) float64; None leaves that factor of R out.
            groups: the sizes of the groups of consecutive rows that Eq. 3 pools; whole pairs.
            by_sensitivity: whether S is a factor of R.

        Returns:
            R of every row, (2, rows) float32, and the record.
        """
