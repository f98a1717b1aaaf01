"""Eq. 2 with the diagonal of the Gauss-Newton matrix, from labels that the model draws itself."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch import distributed as dist

from ..effectiveness import Closure
from ..refresh import Refreshed, check_probes
from ..replay import undisturbed
from ..taylor.probes import mixed


class GaussNewtonBartlett(Refreshed):
    """Eq. 2 with ``h = E[g_s^2]``, g_s the gradient of a loss with sampled labels (as in Sophia).

    Where a loss is a weighted sum of negative log-likelihoods, ``L = sum_t w_t l_t``, and labels
    are drawn from the model's own output, Bartlett's identity makes the squared gradient of
    ``sum_t sqrt(w_t) l_t`` an unbiased estimate of the diagonal of the Gauss-Newton matrix, which
    is H without the curvature of the network itself, and never negative. The closure returns that
    sum; for a mean cross-entropy::

        ragrad.backward(loss, closure=lambda: sampled_cross_entropy(model(x)))

    or, with the logits of the step itself, which saves the forward::

        ragrad.backward(loss, closure=lambda: sampled_cross_entropy(logits))

    A detector's loss allows it in part only: focal, IoU and smooth-L1 terms are not the negative
    log-likelihood of a distribution that labels could be drawn from, and which anchors are matched
    depends on the true boxes. Such a closure may sum over the terms that are (an objectness, a
    region's class), and E then lacks the curvature of the rest.

    Cost: a refresh takes one extra step a probe, or only its backward. State: q, (2, rows).
    Needs: ``ragrad.backward(loss, closure=...)`` with the closure above, not that of the loss.

    Args:
        probes: draws of labels per refresh.
        every, average, spread, seed, group: as in `Refreshed`; ``seed`` is of the labels.
    """

    def __init__(
        self,
        probes: int = 1,
        *,
        every: int = 10,
        average: float = 0.0,
        spread: int = 1,
        seed: int = 0,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        super().__init__(every=every, average=average, spread=spread, seed=seed, group=group)
        self.probes = check_probes(probes)

    def from_graph(self, loss: Tensor, closure: Closure | None) -> Tensor:
        sampled, twins = self.needed(closure), self.twins
        q = torch.zeros_like(self.q)
        places = [(m, l) for m in (0, 1) for l in self.layers]
        rows = twins.layout.slices()
        for _ in range(self.probes):
            with undisturbed(twins.device), torch.enable_grad():
                # or labels would repeat wherever nothing else draws between refreshes
                _seed(twins.device, mixed(self.own_seed, self.draws))
                # the graph may be the step's own, whose backward is still to come
                found = torch.autograd.grad(
                    sampled(),
                    [twins.weights[m][l] for m, l in places],
                    retain_graph=True,
                    allow_unused=True,
                )
            self.draws += 1
            for (m, l), g in zip(places, found, strict=True):
                if g is not None:
                    g = g.movedim(twins.channel_axes[l], 0).to(torch.float64, copy=True)
                    terms = g.mul_(twins.first(m, l)).square_()
                    q[m, rows[l]] += 0.5 * terms.reshape(terms.shape[0], -1).sum(1)
        return q / self.probes

    def needed(self, closure: Closure | None) -> Closure:
        if closure is None:
            raise RuntimeError(
                "GaussNewtonBartlett draws labels from the model's output: call "
                "ragrad.backward(loss, closure=lambda: sampled_cross_entropy(logits)). Without "
                "such a closure the estimators that remain are Gate, FirstOrder, Fisher and "
                "Hutchinson, and FiniteDifference with a closure of the loss itself"
            )
        return closure


def sampled_cross_entropy(logits: Tensor) -> Tensor:
    """What a `GaussNewtonBartlett` closure returns for a mean cross-entropy.

    Args:
        logits: (n, K, ...), as ``torch.nn.functional.cross_entropy`` takes them.

    Returns:
        ``sum_t l_t / sqrt(T)`` over the T = n * ... terms, labels drawn from ``softmax(logits)``.
    """
    flat = logits.movedim(1, -1).reshape(-1, logits.shape[1])
    labels = torch.multinomial(flat.detach().float().softmax(1), 1).squeeze(1)
    return nn.functional.cross_entropy(flat, labels, reduction="sum") / len(labels) ** 0.5


def _seed(device: torch.device, seed: int) -> None:
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
