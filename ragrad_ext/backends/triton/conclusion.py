"""How the second launch of a step is made: Eq. 3-10 from what the observation found."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...rows.bucket import Bucket
from ...rules.ragrad import Options
from ..contract import Rows, RowSums, Sensitivity
from . import plan
from .launch import Correcting, Group, Record, Work, how_to_correct, on_device

VALUES = 1024  # of a unit of RATE


class Launch(NamedTuple):
    """One launch.

    Attributes:
        rated: how many groups of rows it rates. The first one rates all; those that follow on
            the same stream, for other types and for rows that are no runs, rate none.
    """

    group: Group
    queue: Tensor
    counters: Tensor
    rated: int


class Rating:
    """Eq. 3-5 for one division of the rows into groups: tables, room, and what is launched.

    Args:
        sizes: how many consecutive rows each group has; it holds whole pairs. None at all where R
            is given.
        blocks: how many run at a time.

    Raises:
        ValueError: a group ends within a pair, or rows are left over.
    """

    def __init__(self, sizes: tuple[int, ...], work: Work, blocks: int, two_launches: bool) -> None:
        device, bounds = work.device, work.layout.offsets
        units = [-(-2 * rows // VALUES) for rows in sizes]
        counts = np.array([sizes, units], np.int64)
        ends = counts.cumsum(1)
        if sizes and not (set(ends[0]) <= {*bounds} and ends[0, -1] == bounds[-1]):
            raise ValueError(f"groups of {sizes} rows are not made of whole pairs, all of them")
        first = ends - counts
        table = np.stack([first[0], counts[0], first[1], counts[1]], 1)
        self.table = torch.from_numpy(table).to(device)
        self.moments = torch.empty(sum(units), 8, dtype=torch.float64, device=device)
        self.pooled = torch.empty(len(units), 4, dtype=torch.float64, device=device)
        self.launches: list[Launch] = []
        for n, group in enumerate(work.groups):
            cuts, rated = group.cuts, None
            if sizes:
                first_rows = [x.first_row for x in group.layers]
                lies_in = np.searchsorted(ends[0], first_rows, side="right")  # no empty group
                rated = plan.Rated(lies_in.tolist(), units if n == 0 else ())
            queues = (
                plan.halves(cuts, True, rated)
                if two_launches
                else (plan.queue(cuts, blocks, True, rated),)
            )
            count = len(rated.units) if rated else 0
            words = 2 + 2 * count + 2 * len(cuts)
            counters = torch.zeros(words, dtype=torch.int32, device=device)
            self.launches += [Launch(group, group.upload(q), counters, count) for q in queues]


class Conclusion(Correcting):
    """Eq. 6-10 from given dots, and Eq. 3-5 before, unless R is given."""

    sums = 0

    def __init__(self, bucket: Bucket, operands: Sequence[Rows]) -> None:
        super().__init__(bucket, operands)
        none = torch.zeros(1, dtype=torch.float64, device=bucket.device)
        self.none = none
        self.unrated = none, none.bool().view(torch.int8), none, 0, 0, 0.0, none, none
        # nothing is replaced here: a CUDA graph may come back to it
        self.ratings: dict[tuple[tuple[int, ...], bool], Rating] = {}

    def run(
        self,
        record: Record,
        reliability: Tensor,
        options: Options,
        twin_dots: Tensor,
        two_launches: bool,
    ) -> None:
        """Eq. 6-10 from a given R."""
        values = *self.unrated, reliability, twin_dots
        self._launch(self._rating((), two_launches), values, record, options)

    def rate_and_run(
        self,
        record: Record,
        sums: RowSums,
        effect: Tensor | None,
        sensitivity: Sensitivity,
        groups: Sequence[int],
        by_sensitivity: bool,
        options: Options,
        two_launches: bool,
    ) -> Tensor:
        """Eq. 3-10; R, (2, rows) float32."""
        score, steps, alpha = sensitivity
        by_effect = effect is not None
        # Nothing is known of the rows of skipped pairs: 1/2 for every factor of R, and no change
        # of S. So where no layer is there at all, this is all that there is to do.
        unknown = 0.5 ** (by_effect + by_sensitivity)
        reliability = self.new(torch.float32, *score.shape, unvisited=unknown)
        values = (
            sums.deviation,
            sums.observed.view(torch.int8),
            self.none if effect is None else effect.contiguous(),
            int(by_effect),
            int(by_sensitivity),
            alpha,
            steps,
            score,
            reliability,
            sums.twin_dots,
        )
        self._launch(self._rating(tuple(groups), two_launches), values, record, options)
        return reliability

    def _rating(self, groups: tuple[int, ...], two_launches: bool) -> Rating:
        key = groups, two_launches
        if key not in self.ratings:
            blocks = self.processors * self.tuned.correct_blocks
            self.ratings[key] = Rating(groups, self, blocks, two_launches)
        return self.ratings[key]

    def _launch(
        self, rating: Rating, values: tuple[Any, ...], record: Record, options: Options
    ) -> None:
        from . import conclude as triton_conclude

        with on_device(self.device):
            for launch in rating.launches:
                arguments = self._arguments(launch, rating, values, record, options)
                grid = self.grid(len(launch.queue), self.tuned.correct_blocks)
                triton_conclude.conclude[(grid,)](*arguments, **self.options(self.warps))

    def _arguments(
        self,
        launch: Launch,
        rating: Rating,
        values: tuple[Any, ...],
        record: Record,
        options: Options,
    ) -> tuple[Any, ...]:
        """Of the kernel, in its order; ``values`` from ``deviation`` to ``dots``."""
        group, queue, counters, rated = launch
        return (
            queue,
            len(queue),
            group.geometry,
            group.pointers,
            len(group.layers),
            counters,
            rated,
            rating.table,
            rating.moments,
            rating.pooled,
            *values,
            self.scales,
            self.conflicts,
            *how_to_correct(group, self.layout.rows, record, options),
            VALUES,
        )

    def arguments_to_compile_for(self) -> Iterator[tuple[Any, Group, tuple[Any, ...]]]:
        from . import conclude as triton_conclude

        rating = self._rating((), two_launches=False)
        reliability = self.new(torch.float32, 2, self.layout.rows)
        values = *self.unrated, reliability, self.none
        for launch in rating.launches:
            arguments = self._arguments(launch, rating, values, self.record(), Options())
            yield triton_conclude.conclude, launch.group, arguments
