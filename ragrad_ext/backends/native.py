"""The compiled backend: C++ on the CPU, CUDA on the GPU (csrc/)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import compiled, reference
from ..rows.bucket import Bucket
from ..rows.conflicts import Conflicts
from ..rows.sums import History, Rows, RowSums, Sensitivity
from ..rules.ragrad import RaGradRule


class Native:
    """Reads every gradient once, rewrites changed rows in place; no copies, no synchronisation.

    The CPU kernels use `torch.get_num_threads` threads and give the same bits for any number of
    them, and on every instruction set.

    Args:
        instruction_set: of the CPU kernels, one of ``_native.instruction_sets()``; default the
            fastest that this machine has.
    """

    name = "native"

    def __init__(self, instruction_set: str | None = None) -> None:
        if instruction_set is None and compiled.module is not None:
            instruction_set = compiled.module.instruction_sets()[0]
        self.instruction_set = instruction_set

    def unusable(self, device: torch.device) -> str | None:
        if compiled.module is None:
            return compiled.missing
        if device.type == "cpu":
            return None
        if device.type == "cuda":
            return compiled.module.cuda_unusable(device.index or 0) or None
        return "it serves cpu and cuda only"

    def observe_(
        self, bucket: Bucket, weights: tuple[Rows, Rows], history: History | None
    ) -> RowSums:
        rows, device, table = bucket.layout.rows, bucket.device, bucket.table
        # zeros, not empty: the rows of skipped pairs are not visited
        g_theta, deviation = (
            torch.zeros(2, rows, dtype=torch.float64, device=device) for _ in range(2)
        )
        observed = torch.zeros(2, rows, dtype=torch.bool, device=device)
        gram = torch.zeros(rows, 3, dtype=torch.float64, device=device)
        table.attach_weights(*weights)
        table.attach_mean(*(history.mean if history else bucket.nothing))
        table.observe(
            step_size=history.step_size if history else None,
            gram=gram,
            g_theta=g_theta,
            deviation=deviation,
            observed=observed,
            **self._how(bucket),
        )
        return RowSums(gram, g_theta, deviation, observed)

    def apply_(self, bucket: Bucket, mix: Tensor) -> None:
        bucket.table.apply(mix=mix.contiguous(), **self._how(bucket))
        bucket.note_changes()

    def decide_and_apply_(self, bucket: Bucket, reliability: Tensor, rule: RaGradRule) -> Conflicts:
        return self._correct_(bucket, reliability, None, rule)

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
        return r, self._correct_(bucket, r, sums.gram, rule)

    def _correct_(
        self, bucket: Bucket, reliability: Tensor, gram: Tensor | None, rule: RaGradRule
    ) -> Conflicts:
        rows, device = bucket.layout.rows, bucket.device
        # zeros, not empty: the rows of skipped pairs are not visited
        cosine, gap, strength = (torch.zeros(rows, device=device) for _ in range(3))
        mask = torch.zeros(rows, dtype=torch.bool, device=device)
        bucket.table.decide_and_apply(
            reliability=reliability,
            gram=gram,
            cosine=cosine,
            gap=gap,
            mask=mask,
            strength=strength,
            dual=rule.identify == "dual",
            blend=rule.resolve == "blend",
            eps=rule.eps,
            **self._how(bucket),
        )
        bucket.note_changes()
        return Conflicts(cosine, gap, mask, strength, bucket.layout)

    def _how(self, bucket: Bucket) -> dict[str, Any]:
        """How to run; on CUDA with zeroed memory for a new geometry, which the table keeps."""
        if bucket.device.type == "cuda" and (missing := bucket.table.missing_workspace()):
            memory = torch.zeros(missing, dtype=torch.uint8, device=bucket.device)
            bucket.table.set_workspace(memory)
        return {"instruction_set": self.instruction_set, "threads": torch.get_num_threads()}
