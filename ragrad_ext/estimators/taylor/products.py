"""Products of the loss's Hessian with a vector: by differentiating twice, or by differences."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from ..effectiveness import Closure
from ..gate.graph import consumers
from ..replay import undisturbed

Products = list[Tensor | None]


class DoubleBackward:
    """``Hv`` by differentiating the gradient, over the tensors that it was built for.

    Raises:
        RuntimeError: an operator of this loss has no second derivative.
    """

    def __init__(self, loss: Tensor, tensors: Sequence[Tensor]) -> None:
        self.tensors = list(tensors)
        # If the last operator is once_differentiable, it raises only when the gradient that it gets
        # requires grad. So it gets one that does.
        seed = torch.ones_like(loss, requires_grad=True)
        with torch.enable_grad():
            # autograd.grad, not backward: .grad and the hooks of the step stay untouched
            self.grads = torch.autograd.grad(
                loss, self.tensors, seed, create_graph=True, allow_unused=True
            )
        # Through one in the middle of the graph torch gives no error, and no derivative.
        graph = consumers(g for g in self.grads if g is not None)
        if any(node.name().endswith("Error") for node in graph):
            raise RuntimeError("an operator is marked @once_differentiable")

    def __call__(self, vectors: Iterable[Tensor]) -> Products:
        """``Hv``; None where the loss does not depend on a tensor."""
        curved = [
            (g, v)
            for g, v in zip(self.grads, vectors, strict=True)
            if g is not None and g.requires_grad
        ]
        if not curved:
            return [None] * len(self.tensors)
        outputs, inner = zip(*curved, strict=True)
        return list(
            torch.autograd.grad(outputs, self.tensors, inner, retain_graph=True, allow_unused=True)
        )


def gradients_at(
    closure: Closure,
    tensors: Sequence[Tensor],
    directions: Iterable[Tensor],
    step: float,
    device: torch.device,
) -> tuple[Products, bool]:
    """The closure's gradients at ``tensors + step directions``, and whether it drew random numbers.

    Tensors, buffers and random state are restored bit for bit, also after an exception. Two calls
    in a row see the same dropout.
    """
    saved = [t.detach().clone() for t in tensors]
    try:
        for t, v in zip(tensors, directions, strict=True):
            # .data: the step's own graph holds these tensors and must not notice that they move
            t.data.add_(v, alpha=step)
        with undisturbed(device), torch.enable_grad():
            before = _random_state(device)
            loss = closure()
            drew = any(
                not torch.equal(a, b) for a, b in zip(before, _random_state(device), strict=True)
            )
            return list(torch.autograd.grad(loss, list(tensors), allow_unused=True)), drew
    finally:
        for t, old in zip(tensors, saved, strict=True):
            t.data.copy_(old)


def _random_state(device: torch.device) -> list[Tensor]:
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return states
