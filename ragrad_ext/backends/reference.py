"""The literal backend: plain PyTorch, float64, one layer at a time, on any device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import reference
from ..rows.bucket import Bucket
from ..rows.conflicts import Conflicts
from ..rows.sums import History, Rows, RowSums, Sensitivity
from ..rules.decide import decide
from ..rules.ragrad import RaGradRule


class Reference:
    """What every other backend is compared with: the verbs one after the other, nothing fused."""

    name = "reference"

    def unusable(self, device: torch.device) -> str | None:
        return "this device has no float64" if device.type == "mps" else None

    def observe_(
        self, bucket: Bucket, weights: tuple[Rows, Rows], history: History | None
    ) -> RowSums:
        return reference.observe_(bucket, weights, history)

    def apply_(self, bucket: Bucket, mix: Tensor) -> None:
        reference.apply_(bucket, mix)

    def decide_and_apply_(self, bucket: Bucket, reliability: Tensor, rule: RaGradRule) -> Conflicts:
        gram = reference.observe_(bucket, bucket.nothing, None).gram
        mix, found = decide(gram, reliability, bucket.layout, rule, bucket.absent())
        reference.apply_(bucket, mix)
        return found

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
        r = reference.rate_(sums, effect, sensitivity, groups, by_sensitivity=by_sensitivity)
        mix, found = decide(sums.gram, r, bucket.layout, rule, bucket.absent())
        reference.apply_(bucket, mix)
        return r, found
