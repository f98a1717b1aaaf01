"""Estimators by random probes converge to the truth, computed exactly, as 1/sqrt(n)."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ragrad_ext import (
    Effectiveness,
    FiniteDifference,
    GateQuadratic,
    GaussNewtonBartlett,
    Hutchinson,
    RowQuadratic,
    sampled_cross_entropy,
)
from ragrad_ext.estimators.refresh import Refreshed
from ragrad_ext.rows.bucket import Bucket
from ragrad_ext.rows.twins import Twins

from ...lib.perceptron import Perceptron, diagonal_form, row_form

DRAWS = 256
SMALL = 1e-6  # in float64: what a one-sided difference adds is far below what probes leave


def diagonal(model: Perceptron) -> Tensor:
    return per_row(model, lambda w: diagonal_form(model.hessian(w).diag().view_as(w), w))


def rows(model: Perceptron) -> Tensor:
    return per_row(model, lambda w: row_form(model.hessian(w), w))


def gauss_newton(model: Perceptron) -> Tensor:
    return per_row(model, lambda w: diagonal_form(model.gauss_newton(w), w))


def gates(model: Perceptron) -> Tensor:
    """The gains behind the first layer; the rows of the second, which has none."""
    truth = rows(model)
    for m, gain in enumerate(model.gains):
        truth[m, : len(gain)] = row_form(model.hessian(gain), gain)
    return truth


def per_row(model: Perceptron, truth: Callable[[Tensor], Tensor]) -> Tensor:
    return torch.stack([torch.cat([truth(w) for w in side]) for side in model.weights]).detach()


CASES: dict[str, tuple[Callable[[], Refreshed], str, Callable[[Perceptron], Tensor]]] = {
    "Hutchinson": (Hutchinson, "group", diagonal),
    "Hutchinson behind a BatchNorm": (Hutchinson, "batch", diagonal),
    "Hutchinson, weighted": (lambda: Hutchinson(form="weighted"), "group", diagonal),
    "central": (lambda: FiniteDifference(step=SMALL), "group", diagonal),
    "one-sided": (lambda: FiniteDifference(sides=1, step=SMALL), "group", diagonal),
    "one-sided, weighted": (
        lambda: FiniteDifference(sides=1, step=SMALL, form="weighted"), "group", diagonal,
    ),
    "rows": (RowQuadratic, "group", rows),
    "rows, central": (lambda: RowQuadratic(product="central", step=SMALL), "group", rows),
    "rows, one-sided": (lambda: RowQuadratic(product="one-sided", step=SMALL), "group", rows),
    "gates": (GateQuadratic, "batch", gates),
    "gates, central": (lambda: GateQuadratic(product="central", step=SMALL), "batch", gates),
    "gates, one-sided": (lambda: GateQuadratic(product="one-sided", step=SMALL), "batch", gates),
    "gates without a gain": (GateQuadratic, "group", rows),
    "Gauss-Newton-Bartlett": (GaussNewtonBartlett, "group", gauss_newton),
}  # fmt: skip


def refreshed(estimator: Refreshed, model: Perceptron) -> Tensor:
    """q of one refresh, as `scores` would take it."""
    model.zero_grad()
    logits = model()
    loss = torch.nn.functional.cross_entropy(logits, model.label)
    sampled = isinstance(estimator, GaussNewtonBartlett)
    closure = (lambda: sampled_cross_entropy(logits)) if sampled else model.loss
    estimator._pending = None
    estimator.before_backward(loss, closure)
    loss.backward()
    estimator.after_backward(closure)
    grads = tuple([w.grad for w in side] for side in model.weights)
    assert estimator._pending is not None
    layout = estimator.twins.layout
    bucket = Bucket(layout, (0, 0), grads, torch.device("cpu"))  # type: ignore[arg-type]
    return estimator.complete(estimator._pending, bucket)


def bound(estimator: Effectiveness, model: Perceptron) -> None:
    estimator.bind(Twins.of(*model.weights, None))


def rms(x: Tensor) -> float:
    return float(x.square().mean().sqrt())


@pytest.mark.parametrize("case", CASES)
def test_probes_converge_to_the_truth(case: str) -> None:
    make, norm, exact = CASES[case]
    model = Perceptron(norm)
    truth = exact(model)
    estimator = make()
    bound(estimator, model)
    draws = torch.stack([refreshed(estimator, model) for _ in range(DRAWS)])
    deviation = draws.std(0).clamp_min(1e-9 * truth.abs().max())
    z = (draws - truth) / deviation  # of each row, variance 1 and mean 0
    whole = z.mean(0) * DRAWS**0.5
    assert whole.abs().max() < 4.5  # 20 rows, two-sided: p < 2e-4 by chance, and the seed is fixed
    few, many = (rms(z.unflatten(0, (-1, n)).mean(1)) for n in (4, 64))
    assert few / many == pytest.approx(
        4, rel=0.35
    )  # sqrt(64 / 4); 4 means of 20 rows: 10 % and more
    truth_matters = rms(truth) > 3 * rms(deviation) / DRAWS**0.5
    assert truth_matters, "the noise hides whether anything was estimated at all"


def test_several_probes_are_the_mean_of_single_ones() -> None:
    model = Perceptron()
    several, one = FiniteDifference(4, sides=1), FiniteDifference(1, sides=1)
    bound(several, model)
    bound(one, model)
    singles = torch.stack([refreshed(one, model) for _ in range(4)]).mean(0)
    torch.testing.assert_close(refreshed(several, model), singles, rtol=1e-9, atol=1e-15)


def test_weighted_probes_vary_less_within_a_row() -> None:
    """One row that matters: no other row adds to the variance, and ``|2ab| <= a^2 + b^2``."""
    model = Perceptron()
    with torch.no_grad():
        for side in model.weights:
            side[0][1:] *= 1e-6
    spread = {}
    for form in ("diagonal", "weighted"):
        estimator = Hutchinson(form=form)  # type: ignore[arg-type]
        bound(estimator, model)
        draws = torch.stack([refreshed(estimator, model) for _ in range(100)])
        spread[form] = draws.std(0)[0, 0]
    assert spread["weighted"] < spread["diagonal"]


def test_the_row_form_of_what_a_batchnorm_makes_blind_is_zero() -> None:
    model = Perceptron("batch")
    with torch.no_grad():
        for stream in (model.rgb, model.ir):
            stream[1].eps = 1e-12  # type: ignore[union-attr]
            stream[0].bias.zero_()  # type: ignore[union-attr]
    assert rows(model)[:, :6].abs().max() < 1e-9 * diagonal(model)[:, :6].abs().max()
