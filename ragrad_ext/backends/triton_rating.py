"""How Eq. 3-5 are launched: groups of rows, their queue, and room for their moments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import triton_launch as launch
from . import triton_plan as plan
from .contract import RowSums, Sensitivity

VALUES = 1024  # of a unit
BLOCKS = 2  # per multiprocessor
WARPS = 8


class Rating:
    """What is kept of one division of the rows into groups.

    Args:
        groups: how many consecutive rows each has.
    """

    def __init__(self, groups: Sequence[int], device: torch.device) -> None:
        self.groups, self.device = tuple(groups), device
        _, processors = launch.device_of(device)
        units = [-(-2 * channels // VALUES) for channels in groups]
        cuts = [plan.Cut(0, 1, 1, 1, n, n) for n in units]
        queue = plan.queue(cuts, processors * BLOCKS)
        self.grid = min(len(queue), processors * BLOCKS)
        ends = np.cumsum([groups, units], 1)
        table = np.stack([ends[0] - groups, groups, ends[1] - units, units], 1)
        self.queue, self.table = (torch.from_numpy(t).to(device) for t in (queue, table))
        self.counters = torch.zeros(2 + 2 * len(units), dtype=torch.int32, device=device)
        self.moments = torch.empty(sum(units), 8, dtype=torch.float64, device=device)
        self.pooled = torch.empty(len(units), 4, dtype=torch.float64, device=device)
        self.none = torch.zeros(1, dtype=torch.float64, device=device)

    def run(
        self,
        sums: RowSums,
        effect: Tensor | None,
        sensitivity: Sensitivity,
        by_sensitivity: bool,
    ) -> Tensor:
        from . import triton_rate

        out = torch.empty_like(sensitivity.score, dtype=torch.float32)
        arguments = self._arguments(sums, effect, sensitivity, by_sensitivity, out)
        with launch.on_device(self.device):
            if self.grid > 0:
                triton_rate.rate[(self.grid,)](*arguments, **_OPTIONS)
        return out

    def _arguments(
        self,
        sums: RowSums,
        effect: Tensor | None,
        sensitivity: Sensitivity,
        by_sensitivity: bool,
        out: Tensor,
    ) -> tuple[Any, ...]:
        score, steps, alpha = sensitivity
        return (
            self.queue,
            len(self.queue),
            self.table,
            len(self.groups),
            self.counters,
            self.moments,
            self.pooled,
            sums.deviation,
            sums.observed.view(torch.int8),
            self.none if effect is None else effect.contiguous(),
            int(effect is not None),
            int(by_sensitivity),
            alpha,
            steps,
            score,
            out,
            score.shape[1],
            VALUES,
        )

    def compile(self) -> None:
        """Compile and load the kernel; launch nothing."""
        from . import triton_rate

        some = torch.empty(2, 1, dtype=torch.float64, device=self.device)
        sums = RowSums(some, some, some.bool())
        arguments = self._arguments(sums, None, Sensitivity(some, some, 0.5), True, some.float())
        with launch.on_device(self.device):
            compiled = triton_rate.rate.warmup(*arguments, grid=(1,), **_OPTIONS)
            getattr(compiled, "run", None)  # loads it onto the device


_OPTIONS = {"num_warps": WARPS, "enable_fp_fusion": True}
