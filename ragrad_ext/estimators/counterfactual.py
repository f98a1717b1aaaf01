"""Eq. 1 as it is written: every channel really removed. The truth that estimates are judged by."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..rows.twins import Twins
from .replay import undisturbed


class Counterfactual(NamedTuple):
    """E of Eq. 1 for both streams: one (C_l,) float64 tensor per pair, in units of the loss."""

    rgb: list[Tensor]
    ir: list[Tensor]

    @classmethod
    def unknown(cls, twins: Twins) -> Counterfactual:
        """One that is nan everywhere."""
        return cls(
            *(
                [torch.full((c,), torch.nan, dtype=torch.float64) for c in twins.layout.channels]
                for _ in range(2)
            )
        )


@torch.no_grad()
def counterfactual(
    closure: Callable[[], Tensor],
    weights_rgb: Sequence[Tensor],
    weights_ir: Sequence[Tensor],
    *,
    channel_axes: Sequence[int] | None = None,
    layers: Sequence[int] | None = None,
    rows: Tensor | None = None,
    progress: bool = True,
) -> Counterfactual:
    """``E = L(theta without channel i) - L(theta)`` for every output channel (Eq. 1).

    It runs one forward per channel: minutes for a small network, hours for a large one. Weights,
    module buffers and torch's random state are restored bit for bit, also after an exception or
    Ctrl-C. Each forward sees the same dropout.

    Args:
        closure: runs the model forward and returns the scalar loss of one fixed batch.
        weights_rgb, weights_ir: L twin weights, as for `Repa`.
        channel_axes: the output channel axis of each pair, default 0.
        layers: the pairs to audit, default all; the others are nan.
        rows: (2, rows) bool, rgb first: the rows of those pairs to audit, default all.
        progress: show a bar (needs tqdm, which the extra ``[detection]`` brings).

    Raises:
        ValueError, TypeError: weights that are no pairs, as in `Repa`.
    """
    twins = Twins.of(weights_rgb, weights_ir, channel_axes)
    chosen = range(len(twins.layout.channels)) if layers is None else layers
    effect = Counterfactual.unknown(twins)
    bounds = twins.layout.slices()
    removed = [
        (m, l, i)
        for m in (0, 1)
        for l in chosen
        for i in range(twins.layout.channels[l])
        if rows is None or rows[m, bounds[l]][i]
    ]

    def loss() -> float:
        with undisturbed(twins.device):
            return float(closure())

    whole = loss()
    for m, l, i in _with_bar(removed) if progress else removed:
        row = twins.weights[m][l].data.movedim(twins.channel_axes[l], 0)[i]
        saved = row.clone()
        try:
            row.zero_()
            effect[m][l][i] = loss() - whole  # Eq. 1
        finally:
            row.copy_(saved)
    return effect


def _with_bar(rows: list[tuple[int, int, int]]) -> Iterable[tuple[int, int, int]]:
    try:
        from tqdm import tqdm
    except ImportError:
        return rows
    return tqdm(rows, desc="removing channels", unit="row")
