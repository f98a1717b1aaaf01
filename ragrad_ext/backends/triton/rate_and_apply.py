"""Rate and apply in one launch: Eq. 3-5 from what an observation found, Eq. 6-10 layer by layer,
and the rewrite of conflict rows."""

# mypy: allow-untyped-defs

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from ...rows.bucket import Bucket
from ...rows.conflicts import Conflicts
from ...rows.sums import Rows, RowSums, Sensitivity
from ...rules.ragrad import RaGradRule
from . import queues
from .apply import apply_share
from .decide import decide_layer, of_record, of_rule
from .launch import Launch
from .rate import GROUP, MOMENTS_OF_UNIT, moments_of_unit, pool_group, rate_layer
from .rows import COLUMNS, is_even
from .tickets import last_to_arrive, leave, publish, read_ticket, take_ticket, wait_for
from .verb import Verb

MOMENTS = tl.constexpr(queues.MOMENTS)
DECIDE = tl.constexpr(queues.DECIDE)
VALUES = 1024  # of a unit of MOMENTS


@triton.jit(
    do_not_specialize=[
        "queue", "tickets", "counters", "geometry", "pointers", "layers", "groups", "count",
        "moments", "pooled", "deviation", "observed", "effect", "by_effect", "by_sensitivity",
        "alpha", "steps", "score", "reliability", "gram", "changes", "shares", "rows",
        "eps", "dual", "blend", "cosine", "gap", "mask", "strength", "largest",
    ]
)  # fmt: skip
def rate_and_apply(
    queue, tickets: tl.int32, counters, geometry, pointers, layers: tl.int32,
    groups, count: tl.int32, moments, pooled, deviation, observed,
    effect, by_effect: tl.int32, by_sensitivity: tl.int32, alpha: tl.float64, steps, score,
    reliability, gram, changes, shares, rows: tl.int64,
    eps: tl.float64, dual: tl.int32, blend: tl.int32, cosine, gap, mask, strength,
    largest: tl.float64,
    DTYPE: tl.constexpr, WALK: tl.constexpr, V: tl.constexpr, TILE: tl.constexpr,
    N: tl.constexpr,
):  # fmt: skip
    """Eq. 3-10 for ``layers`` layers.

    Args:
        counters: 2 + 2 count + 2 layers int32. Of every group of rows: units that have arrived, and
            whether it is pooled. Of every layer: whether it is decided, and how many conflict rows
            it has.
        groups: (all, GROUP) int64: first row, channels, first unit, units.
        count: how many groups of rows this launch pools: all, or none where an earlier launch has.
        moments: (units, 2, MOMENTS_OF_UNIT) float64.
        pooled: (all, 2, 2) float64.
        gram, deviation, observed: of `RowSums`.
        effect: (2, rows) float64, E; not read unless ``by_effect``.
        alpha, steps, score: `Sensitivity`; MOMENTS write the last two.
        reliability: (2, rows) float32, R, written by DECIDE.
        N: values of a unit of MOMENTS.

    The others are those of `decide_and_apply`.
    """
    arrived, pooled_flag = counters + 2, counters + 2 + count
    ready = counters + 2 + 2 * count
    conflicts = ready + layers
    mix = (changes, shares)
    ticket = take_ticket(counters)
    while ticket < tickets:
        l, kind, unit = read_ticket(queue, ticket)
        if kind == MOMENTS:
            group = groups + l * GROUP
            moments_of_unit(
                group, unit, moments, deviation, observed, effect, by_effect, alpha, steps, score,
                rows, N,
            )  # fmt: skip
            if last_to_arrive(arrived + l, tl.load(group + 3)):
                pool_group(group, moments, by_effect, pooled + l * 4)
                publish(pooled_flag + l)
        elif kind == DECIDE:
            line = geometry + l * COLUMNS
            if count != 0:
                wait_for(pooled_flag + unit)  # every MOMENTS has a lower ticket
            rate_layer(
                line, pooled + unit * 4, observed, effect, by_effect, by_sensitivity, score,
                reliability, rows, 256,
            )  # fmt: skip
            decide_layer(
                line, gram, reliability, rows, (eps, dual, blend),
                (cosine, gap, mask, strength), mix, conflicts + l, 256,
            )  # fmt: skip
            publish(ready + l)
        else:
            line = geometry + l * COLUMNS
            a, b = tl.load(pointers + 2 * l), tl.load(pointers + 2 * l + 1)
            even = is_even(line, a | b)
            a, b = a.to(tl.pointer_type(DTYPE)), b.to(tl.pointer_type(DTYPE))
            wait_for(ready + l)  # the layer's DECIDE has a lower ticket
            apply_share(line, a, b, even, unit, conflicts + l, mix, largest, WALK, V, TILE)
        ticket = take_ticket(counters)
    leave(counters, 2 + 2 * count + layers)


class Pools(NamedTuple):
    """What one division of the rows into groups needs: tables, memory, a queue for every launch.

    The first launch pools all groups; the others follow on the same stream, for other types and for
    rows that are no runs, and pool none.

    Attributes:
        table, moments, pooled: as in `rate_and_apply`.
        orders: queue and counters of every launch.
    """

    table: Tensor
    moments: Tensor
    pooled: Tensor
    orders: list[tuple[Tensor, Tensor]]


class RateAndApply(Verb):
    """How `rate_and_apply` is launched."""

    def __init__(self, bucket: Bucket, operands: Sequence[Rows] = ()) -> None:
        super().__init__(bucket, operands)
        rows = self.layout.rows
        self.changes = torch.empty(rows, dtype=torch.int64, device=self.device)
        self.shares = torch.empty(rows, 2, dtype=torch.float64, device=self.device)
        self.no_effect = torch.zeros(1, dtype=torch.float64, device=self.device)
        # by the sizes of groups; nothing is replaced here: a CUDA graph may come back to it
        self.pools: dict[tuple[int, ...], Pools] = {}

    def launches(
        self,
        record: Conflicts,
        reliability: Tensor,
        sums: RowSums,
        effect: Tensor | None,
        sensitivity: Sensitivity,
        groups: tuple[int, ...],
        rule: RaGradRule,
        by_sensitivity: bool,
    ) -> list[Launch]:
        """As `Backend.rate_and_apply_`; ``record`` and ``reliability`` are memory for results.

        Raises:
            ValueError: a group ends within a pair, or rows are left over.
        """
        if groups not in self.pools:
            self.pools[groups] = self._pools(groups)
        table, moments, pooled, orders = self.pools[groups]
        shared: dict[str, Any] = {
            "groups": table,
            "moments": moments,
            "pooled": pooled,
            "gram": sums.gram,
            "deviation": sums.deviation,
            "observed": sums.observed.view(torch.int8),
            "effect": self.no_effect if effect is None else effect.contiguous(),
            "by_effect": int(effect is not None),
            "by_sensitivity": int(by_sensitivity),
            **sensitivity._asdict(),
            "reliability": reliability,
            "changes": self.changes,
            "shares": self.shares,
            "rows": self.layout.rows,
            **of_rule(rule),
            **of_record(record),
            "N": VALUES,
        }
        blocks = self.processors * self.tuned.correct_blocks
        options = self.options(self.tuned.correct_warps)
        return [
            Launch(
                rate_and_apply,
                min(len(queue), blocks),
                {
                    "queue": queue,
                    "tickets": len(queue),
                    "counters": counters,
                    "layers": len(group.layers),
                    "count": len(groups) if n == 0 else 0,
                    **shared,
                    **self.of_gradients(group),
                },
                options,
            )
            for n, (group, (queue, counters)) in enumerate(zip(self.groups, orders, strict=True))
        ]

    def _pools(self, sizes: tuple[int, ...]) -> Pools:
        """For groups of ``sizes`` consecutive rows; each holds whole pairs."""
        bounds = self.layout.offsets
        units = [-(-2 * rows // VALUES) for rows in sizes]
        counts = np.array([sizes, units], np.int64)
        ends = counts.cumsum(1)
        if not (set(ends[0]) <= {*bounds} and sum(sizes) == bounds[-1]):
            raise ValueError(f"groups of {sizes} rows are not made of whole pairs, all of them")
        first = ends - counts
        table = np.stack([first[0], counts[0], first[1], counts[1]], 1)
        blocks = self.processors * self.tuned.correct_blocks
        orders = []
        for n, group in enumerate(self.groups):
            first_rows = [layer.first_row for layer in group.layers]
            group_of = np.searchsorted(ends[0], first_rows, side="right")  # no empty group
            rated = queues.Rated(group_of.tolist(), units if n == 0 else ())
            queue = self.upload(queues.queue(group.cuts, blocks, rated))
            words = 2 + 2 * len(rated.units) + 2 * len(group.layers)
            orders.append((queue, self.zeros(words)))
        per_unit = 2 * MOMENTS_OF_UNIT.value
        return Pools(
            self.upload(table),
            torch.empty(sum(units), per_unit, dtype=torch.float64, device=self.device),
            torch.empty(len(units), 4, dtype=torch.float64, device=self.device),
            orders,
        )
