"""Labels that the model draws itself. (That the estimate is unbiased: test_unbiased.py.)"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ragrad_ext import RaGrad
from ragrad_ext.estimators.research import GaussNewtonBartlett, sampled_cross_entropy

from ...lib.networks import TwoStream, batch
from ...lib.tolerances import LABEL_STANDARD_ERRORS


def test_a_certain_model_draws_its_own_label() -> None:
    """One term at probability p = 1 costs -log 1 = 0; n of them are summed over sqrt(n)."""
    logits = torch.full((4, 3), -100.0)
    logits[:, 2] = 100.0
    assert sampled_cross_entropy(logits).item() == 0.0
    assert sampled_cross_entropy(torch.zeros(4, 3)).item() == pytest.approx(
        4 * torch.log(torch.tensor(3.0)).item() / 2
    )


def test_labels_are_drawn_from_the_softmax() -> None:
    torch.manual_seed(0)
    p = torch.tensor([0.1, 0.2, 0.7])
    n = 20000
    logits = p.log().expand(n, 3).clone().requires_grad_()
    (g,) = torch.autograd.grad(sampled_cross_entropy(logits) * n**0.5, logits)
    drawn = (p - g).mean(0)  # p - onehot is the gradient of a term
    assert (drawn - p).abs().max() < LABEL_STANDARD_ERRORS * (0.25 / n) ** 0.5


def test_maps_of_logits_count_every_place() -> None:
    logits = torch.randn(2, 3, 4, 5)
    torch.manual_seed(1)
    whole = sampled_cross_entropy(logits)
    torch.manual_seed(1)
    flat = sampled_cross_entropy(logits.permute(0, 2, 3, 1).reshape(-1, 3))
    assert torch.equal(whole, flat)


def test_labels_differ_between_refreshes_where_nothing_else_draws() -> None:
    """The random state is restored, yet no two draws are equal; the same seed repeats them all."""

    def draws(seed: int) -> list[torch.Tensor]:
        model = TwoStream("group")
        estimator = GaussNewtonBartlett(every=1, seed=seed)
        ragrad = RaGrad(model.rgb, model.ir, effectiveness=estimator)
        rgb, ir, label = batch()
        state = torch.get_rng_state()
        found = []
        for _ in range(2):
            model.zero_grad()
            logits = model(rgb, ir)
            ragrad.backward(
                nn.functional.cross_entropy(logits, label),
                closure=lambda: sampled_cross_entropy(logits),  # noqa: B023
            )
            ragrad.correct_()
            found.append(estimator.held)
        assert torch.equal(torch.get_rng_state(), state)
        return found

    first, again, other = draws(0), draws(0), draws(1)
    assert not torch.equal(*first)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])
    assert (first[0] >= 0).all()
    assert (first[0] > 0).any()
