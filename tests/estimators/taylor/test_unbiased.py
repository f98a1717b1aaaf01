"""Estimators by random probes converge to the truth, computed exactly, as 1/sqrt(n)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from ragrad_ext import Effectiveness, FiniteDifference, Hutchinson
from ragrad_ext.backends import RowSums
from ragrad_ext.estimators import Refreshed
from ragrad_ext.estimators.research import (
    GateQuadratic,
    GaussNewtonBartlett,
    RowQuadratic,
    sampled_cross_entropy,
)
from ragrad_ext.rows.bucket import Bucket
from ragrad_ext.rows.twins import Twins

from ...lib.perceptron import Perceptron, diagonal_form, row_form
from ...lib.tolerances import FLOAT64_SUM, PROBE_CONVERGENCE, PROBE_STANDARD_ERRORS

DRAWS = 256
SMALL = 1e-6  # in float64: what a one-sided difference adds is far below what probes leave


def diagonal(model: Perceptron) -> Tensor:
    return per_row(model, lambda w: diagonal_form(model.hessian(w).diag().view_as(w), w))


def rows(model: Perceptron) -> Tensor:
    return per_row(model, lambda w: row_form(model.hessian(w), w))


def gauss_newton(model: Perceptron) -> Tensor:
    return per_row(model, lambda w: diagonal_form(model.gauss_newton(w), w))


def gates(model: Perceptron) -> Tensor:
    """The gains after the first layer; the rows of the second, which has none."""
    truth = rows(model)
    for m, gain in enumerate(model.gains):
        truth[m, : len(gain)] = row_form(model.hessian(gain), gain)
    return truth


def per_row(model: Perceptron, truth: Callable[[Tensor], Tensor]) -> Tensor:
    return torch.stack([torch.cat([truth(w) for w in side]) for side in model.weights]).detach()


CASES: dict[str, tuple[Callable[..., Refreshed], str, Callable[[Perceptron], Tensor]]] = {
    "Hutchinson": (Hutchinson, "group", diagonal),
    "Hutchinson before a BatchNorm": (Hutchinson, "batch", diagonal),
    "Hutchinson, weighted": (partial(Hutchinson, form="weighted"), "group", diagonal),
    "central": (partial(FiniteDifference, step=SMALL), "group", diagonal),
    "one-sided": (partial(FiniteDifference, sides=1, step=SMALL), "group", diagonal),
    "one-sided, weighted": (
        partial(FiniteDifference, sides=1, step=SMALL, form="weighted"), "group", diagonal,
    ),
    "rows": (RowQuadratic, "group", rows),
    "rows, central": (partial(RowQuadratic, product="central", step=SMALL), "group", rows),
    "rows, one-sided": (partial(RowQuadratic, product="one-sided", step=SMALL), "group", rows),
    "gates": (GateQuadratic, "batch", gates),
    "gates, central": (partial(GateQuadratic, product="central", step=SMALL), "batch", gates),
    "gates, one-sided": (partial(GateQuadratic, product="one-sided", step=SMALL), "batch", gates),
    "gates without a gain": (GateQuadratic, "group", rows),
    "Gauss-Newton-Bartlett": (GaussNewtonBartlett, "group", gauss_newton),
}  # fmt: skip


def refreshed(estimator: Refreshed, model: Perceptron) -> Tensor:
    """What one step of ``every=1`` measures. (Corrections take no float64, so none is made.)"""
    model.zero_grad()
    logits = model()
    loss = torch.nn.functional.cross_entropy(logits, model.label)
    sampled = isinstance(estimator, GaussNewtonBartlett)
    closure = (lambda: sampled_cross_entropy(logits)) if sampled else model.loss
    estimator.before_backward(loss, closure)
    loss.backward()
    estimator.after_backward(closure)
    layout = estimator.twins.layout
    grads = tuple([w.grad for w in side] for side in model.weights)
    bucket = Bucket(layout, (0, 0), grads, torch.device("cpu"))  # type: ignore[arg-type]
    none = torch.zeros(2, layout.rows, dtype=torch.float64)
    estimator.effect(bucket, RowSums(none.new_zeros(layout.rows, 3), none, none, none.bool()))
    return estimator.held


def bound(estimator: Effectiveness, model: Perceptron) -> None:
    estimator.bind(Twins.of(*model.weights, None))


def rms(x: Tensor) -> float:
    return float(x.square().mean().sqrt())


@pytest.mark.parametrize("case", CASES)
@pytest.mark.slow
def test_probes_converge_to_the_truth(case: str) -> None:
    make, norm, exact = CASES[case]
    model = Perceptron(norm)
    truth = exact(model)
    estimator = make(every=1)
    bound(estimator, model)
    draws = torch.stack([refreshed(estimator, model) for _ in range(DRAWS)])
    deviation = draws.std(0).clamp_min(FLOAT64_SUM * truth.abs().max())
    z = (draws - truth) / deviation  # of each row, variance 1 and mean 0
    whole = z.mean(0) * DRAWS**0.5
    assert whole.abs().max() < PROBE_STANDARD_ERRORS
    few, many = (rms(z.unflatten(0, (-1, n)).mean(1)) for n in (4, 64))
    assert few / many == pytest.approx(4, rel=PROBE_CONVERGENCE)  # sqrt(64 / 4)
    truth_matters = rms(truth) > 3 * rms(deviation) / DRAWS**0.5
    assert truth_matters, "the noise is larger than the truth, so this test shows nothing"


def test_several_probes_are_the_mean_of_single_ones() -> None:
    model = Perceptron()
    several, one = (FiniteDifference(n, sides=1, every=1) for n in (4, 1))
    bound(several, model)
    bound(one, model)
    singles = torch.stack([refreshed(one, model) for _ in range(4)]).mean(0)
    torch.testing.assert_close(refreshed(several, model), singles, rtol=FLOAT64_SUM, atol=0)


def test_weighted_probes_vary_less_within_a_row() -> None:
    """One row that matters: no other row adds to the variance, and ``|2ab| <= a^2 + b^2``."""
    model = Perceptron()
    with torch.no_grad():
        for side in model.weights:
            side[0][1:] *= 1e-6
    spread = {}
    for form in ("diagonal", "weighted"):
        estimator = Hutchinson(form=form, every=1)  # type: ignore[arg-type]
        bound(estimator, model)
        draws = torch.stack([refreshed(estimator, model) for _ in range(100)])
        spread[form] = draws.std(0)[0, 0]
    assert spread["weighted"] < spread["diagonal"]


def test_the_row_form_before_a_batchnorm_is_zero() -> None:
    model = Perceptron("batch")
    with torch.no_grad():
        for stream in (model.rgb, model.ir):
            stream[1].eps = 1e-12  # type: ignore[union-attr]
            stream[0].bias.zero_()  # type: ignore[union-attr]
    assert rows(model)[:, :6].abs().max() < FLOAT64_SUM * diagonal(model)[:, :6].abs().max()
