"""Triton: the second launch of a step. Eq. 3-5, unless R is given; Eq. 6-10 from given dots."""

# mypy: allow-untyped-defs

import triton
import triton.language as tl

from . import plan
from .correct import blend_layer, is_even, settle
from .rate import GROUP, pool_group, rate_unit, rely
from .rows import COLUMNS, KINDS, last_to_arrive, leave, publish, take_ticket, wait_for

SETTLE = tl.constexpr(plan.SETTLE)
BLEND = tl.constexpr(plan.BLEND)
REWRITE = tl.constexpr(plan.REWRITE)
RATE = tl.constexpr(plan.RATE)
RELY = tl.constexpr(plan.RELY)


@triton.jit(
    do_not_specialize=[
        "queue", "tickets", "geometry", "pointers", "layers", "counters", "count", "groups",
        "moments", "pooled", "deviation", "observed", "effect", "by_effect", "by_sensitivity",
        "alpha", "steps", "score", "reliability", "dots", "scales", "conflicts", "rows", "eps",
        "dual", "blend", "cosine", "gap", "mask", "strength",
    ]
)  # fmt: skip
def conclude(
    queue, tickets: tl.int32, geometry, pointers, layers: tl.int32, counters, count: tl.int32,
    groups, moments, pooled, deviation, observed, effect,
    by_effect: tl.int32, by_sensitivity: tl.int32, alpha: tl.float64, steps, score,
    reliability, dots, scales, conflicts, rows: tl.int64,
    eps: tl.float64, dual: tl.int32, blend: tl.int32, cosine, gap, mask, strength,
    DTYPE: tl.constexpr, LARGEST: tl.constexpr, WALK: tl.constexpr, V: tl.constexpr,
    TILE: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """Eq. 3-10 for ``layers`` layers whose dots are given, in one launch or as one half of two.

    Args:
        counters: 2 + 2 count + 2 layers int32: two as ever; of groups of rows, units that were
            rated, and whether it is pooled; of layers, whether it is settled, and how many
            conflict rows it has.
        count: how many groups of rows this launch rates: all, or none.
        groups: (all, GROUP) int64: first row, channels, first unit, units.
        moments: (units, 2, MOMENTS) float64.
        pooled: (all, 2, 2) float64.
        deviation, observed: of `RowSums`.
        effect: (2, rows) float64, E; not read unless ``by_effect``.
        steps, score: `Sensitivity`, written by RATE.
        reliability: (2, rows) float32, R; written by RELY and RELIED, given to SETTLE.
        dots: (rows, 3) float64, given.
        N: values of a unit of RATE.

    The others are those of `triton_correct.correct`.
    """
    arrived, rated = counters + 2, counters + 2 + count
    ready, found = counters + 2 + 2 * count, counters + 2 + 2 * count + layers
    ticket = take_ticket(counters)
    while ticket < tickets:
        what = tl.load(queue + 2 * ticket.to(tl.int64))
        unit = tl.load(queue + 2 * ticket.to(tl.int64) + 1).to(tl.int64)
        l, kind = what // KINDS, what % KINDS
        if kind == RATE:
            group = groups + l * GROUP
            rate_unit(
                group, unit, moments, deviation, observed, effect, by_effect, alpha, steps, score,
                rows, N,
            )  # fmt: skip
            if last_to_arrive(arrived + l, tl.load(group + 3)):
                pool_group(group, moments, by_effect, pooled + l * 4)
                publish(rated + l)
        elif (kind == BLEND) | (kind == REWRITE):
            line = geometry + l * COLUMNS
            a, b = tl.load(pointers + 2 * l), tl.load(pointers + 2 * l + 1)
            if kind == BLEND:
                wait_for(ready + l)  # what settles the layer has a lower ticket
            blend_layer(
                line, a, b, is_even(line, a, b), unit, found + l, scales, conflicts,
                DTYPE, LARGEST, WALK, V, TILE,
            )  # fmt: skip
        else:
            line = geometry + l * COLUMNS
            if kind != SETTLE:
                if kind == RELY:
                    wait_for(rated + unit)  # every RATE has a lower ticket
                rely(
                    line, pooled + unit * 4, observed, effect, by_effect, by_sensitivity, score,
                    reliability, rows, 256,
                )  # fmt: skip
            settle(
                line, dots, reliability, rows, eps, dual, blend,
                cosine, gap, mask, strength, scales, conflicts, found + l, 256,
            )  # fmt: skip
            publish(ready + l)
        ticket = take_ticket(counters)
    leave(counters, 2 + 2 * count + layers)
