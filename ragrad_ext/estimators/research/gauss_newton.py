"""Eq. 2 with the diagonal of the Gauss-Newton matrix, from labels that the model draws itself."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..effectiveness import Closure
from ..refresh import Refreshed
from ..replay import undisturbed
from ..schedule import mixed
from ..taylor.probes import check_probes


class GaussNewtonBartlett(Refreshed):
    """Eq. 2 with ``h = E[g_s^2]``, g_s the gradient of a loss with sampled labels (as in Sophia).

    Take a loss that is a weighted sum of negative log-likelihoods, ``L = sum_t w_t l_t``, and draw
    the labels from the model's own output. By Bartlett's identity the squared gradient of
    ``sum_t sqrt(w_t) l_t`` is then an unbiased estimate of the diagonal of the Gauss-Newton matrix.
    That matrix is H without the curvature of the network itself, and never negative. The closure
    returns that sum; for a mean cross-entropy::

        ragrad.backward(loss, closure=lambda: sampled_cross_entropy(model(x)))

    or with the logits of the step itself, which saves the forward::

        ragrad.backward(loss, closure=lambda: sampled_cross_entropy(logits))

    A detector's loss allows this only in part. Focal, IoU and smooth-L1 terms are not negative
    log-likelihoods of a distribution that labels could be drawn from, and the true boxes decide
    which anchors are matched. The closure may sum over the terms that qualify (an objectness, a
    region's class); E then lacks the curvature of the others.

    Cost: a refresh takes one extra step per probe, or only its backward. State: q, (2, rows).
    Needs: ``ragrad.backward(loss, closure=...)`` with the closure above, not that of the loss.

    Args:
        probes: draws of labels per refresh.
        schedule: fields of `Schedule`; ``seed`` is that of the labels.
    """

    def __init__(self, probes: int = 1, **schedule: Any) -> None:
        super().__init__(**schedule)
        self.probes = check_probes(probes)

    def from_graph(self, loss: Tensor, closure: Closure | None) -> Tensor:
        sampled, twins = self.needed(closure), self.twins
        q = torch.zeros_like(self.held)
        places = [(m, l) for m in (0, 1) for l in self.layers]
        rows = twins.layout.slices()
        for _ in range(self.probes):
            with undisturbed(twins.device), torch.enable_grad():
                # otherwise labels repeat where nothing else draws between refreshes
                _seed(twins.device, mixed(self.schedule.own_seed, self.draws))
                # the graph may be the step's own, whose backward comes later
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
                "ragrad.backward(loss, closure=lambda: sampled_cross_entropy(logits)). Gate, "
                "FirstOrder and Hutchinson need no closure"
            )
        return closure


def sampled_cross_entropy(logits: Tensor) -> Tensor:
    """The loss that a `GaussNewtonBartlett` closure returns for a mean cross-entropy.

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
