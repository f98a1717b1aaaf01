"""How well estimates order the channels of a network, against Eq. 1 itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from scipy.stats import spearmanr
from torch import Tensor

from ragrad_ext import Effectiveness, RaGrad, audit
from ragrad_ext.estimators.research import GaussNewtonBartlett

from .subjects import Subject

TOP = 0.2

Estimators = Mapping[str, Callable[[], Effectiveness]]


def chosen_rows(subject: Subject, n: int, seed: int) -> Tensor:
    """``n`` rows of both streams, or all if there are no more, at random: (2, rows) bool."""
    layout = RaGrad(subject.rgb, subject.ir).repa.layout
    mask = torch.zeros(2 * layout.rows, dtype=torch.bool)
    draw = torch.Generator().manual_seed(seed)
    mask[torch.randperm(2 * layout.rows, generator=draw)[:n]] = True
    return mask.view(2, layout.rows)


def agreement(
    subject: Subject, estimators: Estimators, rows: Tensor
) -> dict[str, dict[str, float]]:
    """Spearman's rank correlation and top-20 % overlap with Eq. 1, over the chosen rows."""
    pairs = RaGrad(subject.rgb, subject.ir).pairs
    removed = audit.counterfactual(
        subject.loss,
        pairs.rgb,
        pairs.ir,
        channel_axes=pairs.channel_axes,
        rows=rows,
        progress=False,
    )
    truth = torch.stack([torch.cat(side) for side in removed])[rows]
    found = {}
    for name, make in estimators.items():
        estimate = estimated(subject, make())[rows]
        top = [set(x.topk(round(TOP * len(x))).indices.tolist()) for x in (truth, estimate)]
        found[name] = {
            "spearman": float(spearmanr(truth, estimate).statistic),
            "top_overlap": len(top[0] & top[1]) / len(top[0]),
        }
    return found


def estimated(subject: Subject, estimator: Effectiveness) -> Tensor:
    """E of every row of both streams, (2, rows), by one step that is not taken."""
    buffers = [b.clone() for b in subject.model.buffers()]
    ragrad = RaGrad(subject.rgb, subject.ir, effectiveness=estimator)
    step(subject, ragrad)
    subject.model.zero_grad()
    for buffer, before in zip(subject.model.buffers(), buffers, strict=True):
        buffer.copy_(before)
    assert ragrad.repa.effect is not None
    return ragrad.repa.effect


def step(subject: Subject, ragrad: RaGrad) -> None:
    """Forward, backward and correction, with the closure that the estimator asks for."""
    subject.model.zero_grad()
    draws = isinstance(ragrad.repa.effectiveness, GaussNewtonBartlett)
    ragrad.backward(subject.loss(), closure=subject.sampled if draws else subject.loss)
    ragrad.correct_()
