"""The order in which blocks take units of work.

Nothing here needs Triton or a device: what these functions return is what the kernels read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from .plan import Cut

# The kinds of tickets. `unit` counts the tickets of one kind and layer from 0.
GRAM = 0  # the Gram sums of one unit's rows; the last block of a layer to finish decides the layer
MOMENTS = 1  # Eq. 4 and the moments of one unit of a group of rows; the last one pools the group
DECIDE = 2  # once the group `unit` is pooled: R of a layer's rows (Eq. 3, 5), then Eq. 6-10
APPLY = 3  # once the layer is decided: rewrite every `applies`-th tile of its conflict rows
KINDS = 4


class Rated(NamedTuple):
    """Eq. 3-5 before a correction whose row sums are given.

    Attributes:
        groups: the group of rows that each layer of the launch belongs to.
        units: MOMENTS tickets of every group; none in a launch that starts after these were done.
    """

    groups: Sequence[int]
    units: Sequence[int] = ()


class Run(NamedTuple):
    """Tickets in a row, which differ by their units alone."""

    layer: int
    kind: int
    tickets: int
    first: int = 0  # unit


def queue(cuts: Sequence[Cut], grid: int, rated: Rated | None = None) -> np.ndarray:
    """The tickets of a correction.

    All MOMENTS tickets, if R is yet to be found. Then layer by layer: what decides it (GRAM, or one
    DECIDE where the row sums are given), and its APPLY tickets about ``grid`` tickets later: late
    enough to find the layer decided, early enough to find its rows in the cache.

    DECIDE and APPLY wait, for lower tickets only: no MOMENTS comes after the first DECIDE, and no
    APPLY before all that decides its layer.

    Args:
        cuts: of the layers of the launch.
        grid: how many blocks there are.

    Returns:
        (tickets, 2) int32: ``KINDS * layer + kind``, where layer counts ``cuts``; and the unit.
    """
    runs = [Run(g, MOMENTS, n) for g, n in enumerate(rated.units if rated else ())]
    decided: list[int] = []  # how many tickets there are up to the last one that decides a layer
    total = done = 0  # tickets after those of MOMENTS; layers whose APPLY is queued
    for l, cut in enumerate(cuts):
        run = Run(l, GRAM, cut.units) if rated is None else Run(l, DECIDE, 1, rated.groups[l])
        runs.append(run)
        total += run.tickets
        decided.append(total)
        while done <= l and decided[done] + grid <= total:
            runs.append(Run(done, APPLY, cuts[done].applies))
            total += cuts[done].applies
            done += 1
    runs += [Run(l, APPLY, cuts[l].applies) for l in range(done, len(cuts))]
    return _tickets(runs)


def units(cuts: Sequence[Cut]) -> np.ndarray:
    """Every unit of every layer, in order: (units, 2) int32, the layer and the unit."""
    counts = [c.units for c in cuts]
    layers = np.repeat(np.arange(len(cuts)), counts)
    return np.stack([layers, np.concatenate([np.arange(n) for n in counts])], 1).astype(np.int32)


def _tickets(runs: Sequence[Run]) -> np.ndarray:
    out = np.empty((sum(run.tickets for run in runs), 2), np.int32)
    at = 0
    for layer, kind, n, first in runs:
        out[at : at + n, 0] = KINDS * layer + kind
        out[at : at + n, 1] = np.arange(first, first + n)
        at += n
    return out
