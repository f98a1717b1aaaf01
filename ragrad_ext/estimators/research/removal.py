"""Eq. 1 itself, many removed channels in one forward."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...backends.contract import RowSums
from ...rows.bucket import Bucket
from ...rows.twins import Twins
from ..counterfactual import Counterfactual, counterfactual
from ..effectiveness import Closure
from ..refresh import Refreshed, ran_out_of_memory
from ..replay import same_randomness, undisturbed


class Removal(Refreshed):
    """Eq. 1 without an estimate: every row is removed, and the loss is computed again.

    Cost: a refresh takes a forward per row, or less with ``at_once``, where rows share what comes
    before them; ``spread`` divides it over steps. Memory: with ``at_once=n``, up to that of n
    forwards of what follows the removed channel. State: E itself in ``held``, (2, rows).
    Needs: ``ragrad.backward(loss, closure=...)``.

    Args:
        model: the module that the closure calls; needed only with ``at_once`` above 1.
        at_once: channels removed in one forward; 1 removes them one by one, through any operator.
        every: steps between refreshes.
        schedule: the other fields of `Schedule`. Nothing is drawn, so ``seed`` changes nothing.

    Raises:
        ValueError: an option out of its range, or ``at_once`` without the model.
    """

    def __init__(
        self, model: nn.Module | None = None, *, at_once: int = 1, every: int = 100, **schedule: Any
    ) -> None:
        super().__init__(every=every, **schedule)
        if at_once < 1:
            raise ValueError(f"at_once={at_once}; remove at least one channel in a forward")
        if at_once > 1 and model is None:
            raise ValueError(f"at_once={at_once} needs the model: Removal(model, at_once=...)")
        self.model, self.at_once = model, at_once

    def from_graph(self, loss: Tensor, closure: Closure | None) -> None:
        self.needed(closure)

    def from_closure(self, closure: Closure) -> Tensor:
        twins = self.twins
        axes, layers = twins.channel_axes, self.layers
        if self.model is None or self.at_once == 1:
            found = counterfactual(
                closure, *twins.weights, channel_axes=axes, layers=layers, progress=False
            )
        else:
            found = batched_counterfactual(
                closure, self.model, *twins.weights,
                at_once=self.at_once, channel_axes=axes, layers=layers,
            )  # fmt: skip
        return torch.stack([torch.cat(side) for side in found]).to(self.held.device)

    def estimate(self, bucket: Bucket, sums: RowSums) -> Tensor:
        return self.held if self.whole else -sums.g_theta


@torch.no_grad()
def batched_counterfactual(
    closure: Callable[[], Tensor],
    model: nn.Module,
    weights_rgb: Sequence[Tensor],
    weights_ir: Sequence[Tensor],
    *,
    at_once: int = 16,
    channel_axes: Sequence[int] | None = None,
    layers: Sequence[int] | None = None,
) -> Counterfactual:
    """Eq. 1 as in `audit.counterfactual`, but ``at_once`` channels of a layer in one forward.

    The model runs once under ``torch.vmap`` over copies of a weight, each without one channel. What
    comes before the weight is computed once, what follows it once per channel. Weights are never
    written, buffers and random state are restored bit for bit, and each channel sees the same
    dropout.

    Args:
        closure: runs ``model`` forward and returns the scalar loss of one fixed batch.
        model: holds the weights, as parameters, and all buffers that its forward changes.
        at_once: channels per forward; memory grows with it.
        weights_rgb, weights_ir, channel_axes, layers: as in `audit.counterfactual`.

    Raises:
        RuntimeError: the forward depends on values (``.item()``, regions kept by their score), or
            writes in a way that cannot be batched. Remove channels one by one then.
        ValueError: a weight is not a parameter of ``model``.
    """
    twins = Twins.of(weights_rgb, weights_ir, channel_axes)
    whole = _Whole(model, closure)
    names = {id(p): name for name, p in whole.named_parameters()}
    missing = sum(id(w) not in names for side in twins.weights for w in side)
    if missing:
        raise ValueError(
            f"{missing} paired weights are not parameters of this model; pass the whole model"
        )
    effect = Counterfactual.unknown(twins)
    with undisturbed(twins.device):
        buffers = {name: b.clone() for name, b in whole.named_buffers()}
        before = float(closure())
        changed = [name for name, b in whole.named_buffers() if not torch.equal(b, buffers[name])]
    copies = {name: buffers[name] for name in changed}
    for m, side in enumerate(twins.weights):
        for l in range(len(side)) if layers is None else layers:
            for rows in torch.arange(twins.layout.channels[l]).split(at_once):
                # not `undisturbed`: the model's own buffers are not written
                with same_randomness(twins.device):
                    losses = _losses(
                        whole,
                        names[id(side[l])],
                        twins.first(m, l),
                        twins.channel_axes[l],
                        rows,
                        copies,
                    )
                effect[m][l][rows] = losses.double().cpu() - before  # Eq. 1
    return effect


class _Whole(nn.Module):
    """The closure as the forward of a module, so that what it calls can run with other tensors."""

    def __init__(self, model: nn.Module, closure: Callable[[], Tensor]) -> None:
        super().__init__()
        self.model, self.closure = model, closure

    def forward(self) -> Tensor:
        return self.closure()


def _losses(
    whole: _Whole, name: str, first: Tensor, axis: int, rows: Tensor, buffers: Mapping[str, Tensor]
) -> Tensor:
    """The loss without each of ``rows`` of one weight, (len(rows),)."""
    n = len(rows)
    without = first.expand(n, *first.shape).clone()
    without[torch.arange(n), rows] = 0

    def loss(weight: Tensor, own: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(whole, {name: weight.movedim(0, axis), **own}, ())

    # A forward that writes into a buffer needs its own copy for each channel.
    own = {key: b.expand(n, *b.shape).clone() for key, b in buffers.items()}
    try:
        return torch.vmap(loss, randomness="same")(without, own)
    except RuntimeError as error:
        if ran_out_of_memory(error):
            raise
        raise RuntimeError(
            "this model cannot run for several removed channels at once, because its forward "
            f"depends on values or writes in place: {error}. at_once=1, or audit.counterfactual, "
            "removes them one by one"
        ) from error
