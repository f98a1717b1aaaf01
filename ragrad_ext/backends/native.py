"""The compiled backend: C++ on the CPU, CUDA on the GPU (csrc/)."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import compiled
from ..rows.bucket import Bucket
from ..rows.conflicts import Conflicts
from ..rules.ragrad import Options
from .contract import History, Rows, RowSums
from .rating import Rating


class Native(Rating):
    """Reads every gradient once, rewrites conflict rows in place; no copies, no synchronisation.

    The CPU kernels use `torch.get_num_threads` threads and give the same bits for any number of
    them, and on every instruction set.

    Args:
        instruction_set: of the CPU kernels, one of ``_native.instruction_sets()``; default the
            fastest that this machine has.
        two_launches: the plain CUDA variant, sums first, rewrite second: the yardstick of
            ``benchmarks/kernels.py``.
    """

    name = "native"

    def __init__(self, instruction_set: str | None = None, *, two_launches: bool = False) -> None:
        if instruction_set is None and compiled.module is not None:
            instruction_set = compiled.module.instruction_sets()[0]
        self.instruction_set, self.two_launches = instruction_set, two_launches

    def unusable(self, device: torch.device) -> str | None:
        if compiled.module is None:
            return compiled.missing
        if device.type == "cpu":
            return None
        if device.type == "cuda":
            return compiled.module.cuda_unusable(device.index or 0) or None
        return "it serves cpu and cuda only"

    def correct_(
        self,
        bucket: Bucket,
        reliability: Tensor,
        options: Options,
        twin_dots: Tensor | None = None,
    ) -> Conflicts:
        rows, device = bucket.layout.rows, bucket.device
        # zeros, not empty: the rows of skipped pairs are not visited
        cosine, gap, strength = (torch.zeros(rows, device=device) for _ in range(3))
        mask = torch.zeros(rows, dtype=torch.bool, device=device)
        _provide_workspace(bucket)
        bucket.table.correct(
            reliability,
            twin_dots,
            cosine,
            gap,
            mask,
            strength,
            options.identify == "dual",
            options.resolve == "blend",
            options.eps,
            self.instruction_set,
            torch.get_num_threads(),
            self.two_launches,
        )
        bucket.note_changes()
        return Conflicts(cosine, gap, mask, strength, bucket.layout)

    def observe_(
        self, bucket: Bucket, weights: tuple[Rows, Rows], history: History | None
    ) -> RowSums:
        rows, device, table = bucket.layout.rows, bucket.device, bucket.table
        # zeros, not empty: the rows of skipped pairs are not visited
        dot, deviation = (
            torch.zeros(2, rows, dtype=torch.float64, device=device) for _ in range(2)
        )
        observed = torch.zeros(2, rows, dtype=torch.bool, device=device)
        twin_dots = torch.zeros(rows, 3, dtype=torch.float64, device=device)
        none = [None] * len(bucket.layout.channels)
        table.attach_weights(*weights)
        table.attach_mean(*(history.mean if history else (none, none)))
        _provide_workspace(bucket)
        table.observe(
            history.weight if history else None,
            twin_dots,
            dot,
            deviation,
            observed,
            self.instruction_set,
            torch.get_num_threads(),
        )
        return RowSums(dot, deviation, observed, twin_dots)


def _provide_workspace(bucket: Bucket) -> None:
    """On CUDA: zeroed memory for a new geometry, kept by the table; nothing in the steady state."""
    if bucket.device.type == "cuda" and (missing := bucket.table.missing_workspace()):
        memory = torch.zeros(missing, dtype=torch.uint8, device=bucket.device)
        bucket.table.set_workspace(memory)
