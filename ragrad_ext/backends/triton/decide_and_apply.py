"""Decide and apply in one launch, by a given R: the Gram sums of every row, Eq. 6-10 layer by
layer, and the rewrite of conflict rows."""

# mypy: allow-untyped-defs

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...rows.bucket import Bucket
from ...rows.conflicts import Conflicts
from ...rows.sums import Rows
from ...rules.ragrad import RaGradRule
from . import queues
from .apply import apply_share
from .decide import decide_layer, of_record, of_rule
from .gram import gram_of_tile
from .launch import Launch
from .rows import (
    COLUMNS,
    FIRST_ROW,
    PARTS,
    PIECES,
    UNITS,
    add_all_parts,
    for_tiles_of_unit,
    is_even,
)
from .tickets import last_to_arrive, leave, publish, read_ticket, take_ticket, wait_for
from .verb import Verb

GRAM = tl.constexpr(queues.GRAM)


@triton.jit(
    do_not_specialize=[
        "queue", "tickets", "counters", "geometry", "pointers", "layers", "gram", "parts",
        "changes", "shares", "reliability", "rows", "eps", "dual", "blend",
        "cosine", "gap", "mask", "strength", "largest",
    ]
)  # fmt: skip
def decide_and_apply(
    queue, tickets: tl.int32, counters, geometry, pointers, layers: tl.int32, gram, parts,
    changes, shares, reliability, rows: tl.int64,
    eps: tl.float64, dual: tl.int32, blend: tl.int32, cosine, gap, mask, strength,
    largest: tl.float64,
    DTYPE: tl.constexpr, WALK: tl.constexpr, V: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Eq. 6-10 for ``layers`` layers.

    Args:
        queue: (tickets, 2) int32, see `queues.queue`.
        counters: 2 + 3 layers int32. Of every layer: units that have arrived, whether it is
            decided, and how many conflict rows it has.
        geometry: (layers, COLUMNS) int64.
        pointers: (layers, 2) int64, the addresses of the gradients.
        gram: (rows, 3) float64, found here.
        parts: (pieces, 3) float64, of rows in several pieces.
        changes, shares: (rows,) int64 and (rows, 2) float64, see `decide_layer`.
        reliability: (2, rows) float32.
        cosine, gap, mask, strength: the record, (rows,).
        largest: of the gradients' type.
        V: elements of 16 bytes.
        TILE: elements of a tile.
    """
    arrived, ready, count = counters + 2, counters + 2 + layers, counters + 2 + 2 * layers
    mix = (changes, shares)
    ticket = take_ticket(counters)
    while ticket < tickets:
        l, kind, unit = read_ticket(queue, ticket)
        line = geometry + l * COLUMNS
        a, b = tl.load(pointers + 2 * l), tl.load(pointers + 2 * l + 1)
        even = is_even(line, a | b)
        a, b = a.to(tl.pointer_type(DTYPE)), b.to(tl.pointer_type(DTYPE))
        if kind == GRAM:
            args = (a, b, gram, parts)
            for_tiles_of_unit(gram_of_tile, line, unit, even, args, WALK, V, TILE)
            if last_to_arrive(arrived + l, tl.load(line + UNITS)):
                if tl.load(line + PIECES) > 1:
                    first = parts + tl.load(line + PARTS) * 3
                    add_all_parts(line, first, gram + tl.load(line + FIRST_ROW) * 3, 3, 3)
                decide_layer(
                    line, gram, reliability, rows, (eps, dual, blend),
                    (cosine, gap, mask, strength), mix, count + l, 256,
                )  # fmt: skip
                publish(ready + l)
        else:
            wait_for(ready + l)  # the layer's GRAM have lower tickets
            apply_share(line, a, b, even, unit, count + l, mix, largest, WALK, V, TILE)
        ticket = take_ticket(counters)
    leave(counters, 2 + 2 * layers)


class DecideAndApply(Verb):
    """How `decide_and_apply` is launched."""

    def __init__(self, bucket: Bucket, operands: Sequence[Rows] = ()) -> None:
        super().__init__(bucket, operands)
        rows, blocks = self.layout.rows, self.processors * self.tuned.correct_blocks
        self.gram = torch.empty(rows, 3, dtype=torch.float64, device=self.device)
        self.changes = torch.empty(rows, dtype=torch.int64, device=self.device)
        self.shares = torch.empty(rows, 2, dtype=torch.float64, device=self.device)
        self.queues = [self.upload(queues.queue(g.cuts, blocks)) for g in self.groups]
        self.counters = [self.zeros(2 + 3 * len(g.layers)) for g in self.groups]
        self.all_parts = [self.parts(g, 3) for g in self.groups]

    def launches(self, record: Conflicts, reliability: Tensor, rule: RaGradRule) -> list[Launch]:
        shared: dict[str, Any] = {
            "gram": self.gram,
            "changes": self.changes,
            "shares": self.shares,
            "reliability": reliability,
            "rows": self.layout.rows,
            **of_rule(rule),
            **of_record(record),
        }
        blocks = self.processors * self.tuned.correct_blocks
        options = self.options(self.tuned.correct_warps)
        return [
            Launch(
                decide_and_apply,
                min(len(queue), blocks),
                {
                    "queue": queue,
                    "tickets": len(queue),
                    "counters": counters,
                    "layers": len(group.layers),
                    "parts": parts,
                    **shared,
                    **self.of_gradients(group),
                },
                options,
            )
            for group, queue, counters, parts in zip(
                self.groups, self.queues, self.counters, self.all_parts, strict=True
            )
        ]
