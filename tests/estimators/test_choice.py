"""Estimators by name, and the line that the logger says about them."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ragrad_ext import FirstOrder, Gate, Hutchinson, RaGrad, Repa

from ..lib.networks import TwoStream, loss_of


def test_estimators_by_name() -> None:
    weights = [nn.Parameter(torch.randn(4, 3))]
    others = [nn.Parameter(torch.randn(4, 3))]
    for name, kind in (("auto", Gate), ("paper", Hutchinson)):
        assert type(Repa(weights, others, effectiveness=name).effectiveness) is kind
    mine = FirstOrder()
    assert Repa(weights, others, effectiveness=mine).effectiveness is mine
    assert type(RaGrad(weights, others).repa.effectiveness) is Gate


@pytest.mark.parametrize(
    ("wrong", "error", "match"),
    [
        ("gates", ValueError, 'effectiveness "gates" is unknown; pass "auto" or "paper"'),
        (Gate, TypeError, r"effectiveness is the class Gate; pass an estimator, such as Gate\(\)"),
        (3, TypeError, "effectiveness is int; pass an estimator"),
        (None, TypeError, "effectiveness is NoneType"),
    ],
)
def test_anything_else_is_refused(wrong: Any, error: type[Exception], match: str) -> None:
    model = TwoStream()
    with pytest.raises(error, match=match):
        RaGrad(model.rgb, model.ir, effectiveness=wrong)


def steps(model: TwoStream, ragrad: RaGrad, n: int = 1) -> None:
    for _ in range(n):
        model.zero_grad()
        ragrad.backward(loss_of(model))
        ragrad.correct_()


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.name == "ragrad_ext"]


@pytest.mark.parametrize(
    ("norm", "line"),
    [
        ("batch", "effectiveness by Gate: 28 rows read off the gain of a norm"),
        ("group", "effectiveness by Gate: 28 rows by hooks around a GroupNorm or LayerNorm"),
    ],
)
def test_the_logger_says_one_line_once(
    norm: str, line: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "ragrad_ext")
    model = TwoStream(norm)
    steps(model, RaGrad(model.rgb, model.ir), 3)
    assert said(caplog) == [line]


def test_the_logged_line_names_rows_without_a_gate(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "ragrad_ext")
    model = TwoStream()
    model.rgb[1].weight.requires_grad_(False)  # type: ignore[union-attr]
    steps(model, RaGrad(model.rgb, model.ir, effectiveness=Gate(hooks=False)))
    assert said(caplog) == [
        "effectiveness by Gate: 22 rows read off the gain of a norm, "
        "6 rows at their own output (needs a hook, and hooks=False)"
    ]


def test_without_effectiveness_nothing_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "ragrad_ext")
    model = TwoStream()
    steps(model, RaGrad(model.rgb, model.ir, factors="sensitivity"))
    assert said(caplog) == []


class Once(torch.autograd.Function):
    """The square, without a second derivative; losses of some libraries end so."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return 2 * g * ctx.saved_tensors[0]


def test_a_missing_double_backward_is_an_error_at_the_first_loss_but_not_for_auto() -> None:
    model = TwoStream()
    before = [p.detach().clone() for p in model.parameters()]
    paper = RaGrad(model.rgb, model.ir, effectiveness="paper")
    with pytest.raises(RuntimeError, match=r"second derivative of every operator.*Gate"):
        paper.backward(Once.apply(loss_of(model)))
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
    auto = RaGrad(model.rgb, model.ir)
    auto.backward(Once.apply(loss_of(model)))
    assert auto.correct_().count() >= 0
    assert auto.repa.effect is not None
