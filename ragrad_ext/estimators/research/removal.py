"""Eq. 1 itself, many removed channels in one forward."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch import distributed as dist

from ...backends.contract import RowSums
from ...rows.bucket import Bucket
from ...rows.twins import Twins
from ..counterfactual import Counterfactual, counterfactual
from ..effectiveness import Closure
from ..refresh import Refreshed, ran_out_of_memory
from ..replay import same_randomness, undisturbed


class Removal(Refreshed):
    """Eq. 1 without an estimate: every row is removed, the loss computed anew.

    Cost: a refresh takes a forward per row, less with ``at_once``, where rows share what lies
    before them; ``spread`` divides it over steps. Memory: with ``at_once`` of n, up to that of n
    forwards behind the removed channel. State: q, (2, rows), which here is E itself.
    Needs: ``ragrad.backward(loss, closure=...)``.

    Args:
        model: the module that the closure calls; only to batch.
        at_once: channels removed in one forward; 1 removes them one by one, through any operator.
        every, average, spread, group: as in `Refreshed`.
    """

    def __init__(
        self,
        model: nn.Module | None = None,
        *,
        at_once: int = 1,
        every: int = 100,
        average: float = 0.0,
        spread: int = 1,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        super().__init__(every=every, average=average, spread=spread, group=group)
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
        return torch.stack([torch.cat(side) for side in found]).to(self.q.device)

    def estimate(self, bucket: Bucket, sums: RowSums) -> Tensor:
        return self.q if self.whole else -sums.dot


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
    """Eq. 1 as `audit.counterfactual` has it, ``at_once`` channels of a layer in one forward.

    The model runs once under ``torch.vmap`` over copies of a weight, each without one channel:
    what lies before the weight is computed once, what lies behind it once per channel. Weights are
    never written; buffers and random state come back bit for bit, and each channel sees the same
    dropout.

    Args:
        closure: runs ``model`` forward and returns the scalar loss of one fixed batch.
        model: holds the weights, as parameters, and all buffers that its forward changes.
        at_once: channels per forward; memory grows with it.
        weights_rgb, weights_ir, channel_axes, layers: as in `audit.counterfactual`.

    Raises:
        RuntimeError: the forward depends on values (``.item()``, regions kept by their score), or
            writes in a way that cannot be batched; remove channels one by one then.
        ValueError: a weight is no parameter of ``model``.
    """
    twins = Twins.of(weights_rgb, weights_ir, channel_axes)
    whole = _Whole(model, closure)
    names = {id(p): name for name, p in whole.named_parameters()}
    missing = sum(id(w) not in names for side in twins.weights for w in side)
    if missing:
        raise ValueError(f"{missing} paired weights are no parameters of this model; pass it whole")
    effects = tuple(
        [torch.full((c,), torch.nan, dtype=torch.float64) for c in twins.layout.channels]
        for _ in range(2)
    )
    with undisturbed(twins.device):
        buffers = {name: b.clone() for name, b in whole.named_buffers()}
        before = float(closure())
        changed = [name for name, b in whole.named_buffers() if not torch.equal(b, buffers[name])]
    copies = {name: buffers[name] for name in changed}
    for m, side in enumerate(twins.weights):
        for l in range(len(side)) if layers is None else layers:
            for rows in torch.arange(twins.layout.channels[l]).split(at_once):
                # not undisturbed: no buffer of the model's own is written
                with same_randomness(twins.device):
                    losses = _losses(
                        whole,
                        names[id(side[l])],
                        twins.first(m, l),
                        twins.channel_axes[l],
                        rows,
                        copies,
                    )
                effects[m][l][rows] = losses.double().cpu() - before  # Eq. 1
    return Counterfactual(*effects)


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

    # A forward that writes into a buffer needs one of its own for each channel.
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
