"""Eq. 1, several channels at once, against one by one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ragrad_ext import RaGrad
from ragrad_ext.audit import Counterfactual, counterfactual
from ragrad_ext.estimators.research import Removal
from ragrad_ext.estimators.research.removal import batched_counterfactual

from ...lib.networks import TwoStream, loss_of
from ...lib.tolerances import LOSS_DIFFERENCE


def agree(a: Counterfactual, b: Counterfactual) -> None:
    for one, other in zip((*a.rgb, *a.ir), (*b.rgb, *b.ir), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=LOSS_DIFFERENCE, equal_nan=True)


@pytest.mark.parametrize("norm", ["batch", "group", "none"])
@pytest.mark.parametrize("at_once", [3, 64])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_many_at_once_are_as_one_by_one_and_leave_no_trace(
    norm: str, at_once: int, dropout: float
) -> None:
    """Also with train-mode BatchNorm, dropout, and chunks that do not divide the channels."""
    model = TwoStream(norm, dropout)
    pairs = RaGrad(model.rgb, model.ir).pairs
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = torch.get_rng_state()
    found = batched_counterfactual(
        lambda: loss_of(model), model, pairs.rgb, pairs.ir, at_once=at_once
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert all(
        p is q for p, q in zip(pairs.rgb, RaGrad(model.rgb, model.ir).pairs.rgb, strict=True)
    )
    agree(found, counterfactual(lambda: loss_of(model), pairs.rgb, pairs.ir, progress=False))
    assert all(e.abs().max() > 100 * LOSS_DIFFERENCE for e in (*found.rgb, *found.ir))


class Transposed(nn.Module):
    """Output channels on axis 1, in evaluation mode, and a plain one before it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rgb, self.ir = (
            nn.Sequential(nn.Conv2d(3, 4, 1), nn.ConvTranspose2d(4, 5, 2), nn.BatchNorm2d(5))
            for _ in range(2)
        )
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return (self.rgb(x) * self.ir(x)).square().mean()


def test_chosen_layers_and_other_axes() -> None:
    model = Transposed()
    x = torch.randn(2, 3, 4, 4)
    sides = [[s[0].weight, s[1].weight] for s in (model.rgb, model.ir)]
    options = {"channel_axes": [0, 1], "layers": [1]}
    found = batched_counterfactual(lambda: model(x), model, *sides, **options)  # type: ignore[arg-type]
    agree(found, counterfactual(lambda: model(x), *sides, **options, progress=False))  # type: ignore[arg-type]
    assert found.rgb[0].isnan().all()
    assert found.rgb[1].abs().min() > 100 * LOSS_DIFFERENCE


def test_a_forward_that_depends_on_values_says_so() -> None:
    model = Transposed()
    x = torch.randn(2, 3, 4, 4)

    def loss() -> Tensor:
        out = model(x)
        return out if out.item() > 0 else -out

    sides = [[s[0].weight] for s in (model.rgb, model.ir)]
    with pytest.raises(RuntimeError, match=r"several removed channels at once.*audit.counterfact"):
        batched_counterfactual(loss, model, *sides)


def test_a_model_without_these_weights_is_refused() -> None:
    model = Transposed()
    sides = [[s[0].weight] for s in (model.rgb, model.ir)]
    with pytest.raises(ValueError, match="1 paired weights are not parameters of this model"):
        batched_counterfactual(lambda: torch.zeros(()), model.rgb, *sides)


@pytest.mark.parametrize("at_once", [1, 4])
@pytest.mark.parametrize("spread", [1, 2])
def test_the_estimator_is_eq1(at_once: int, spread: int) -> None:
    model = TwoStream()
    estimator = Removal(model, at_once=at_once, every=2, spread=spread)
    ragrad = RaGrad(model.rgb, model.ir, effectiveness=estimator)
    truth = counterfactual(
        lambda: loss_of(model), ragrad.pairs.rgb, ragrad.pairs.ir, progress=False
    )
    for _ in range(spread):
        ragrad.backward(loss_of(model), closure=lambda: loss_of(model))
        ragrad.correct_()
    assert ragrad.repa.effect is not None
    expected = torch.stack([torch.cat(side) for side in truth])
    torch.testing.assert_close(ragrad.repa.effect, expected, rtol=0, atol=LOSS_DIFFERENCE)
