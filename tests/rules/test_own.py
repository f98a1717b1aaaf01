"""A rule of one's own: ten lines, every backend, and errors that name what is wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from ragrad_ext import RaGrad, Reliability, Repa, correct_
from ragrad_ext.backends import BACKENDS
from ragrad_ext.rows.layout import Layout
from ragrad_ext.rules import RaGradRule

from ..lib import cases
from ..lib.networks import TwoStream, loss_of
from ..lib.parity import clone

USABLE = [b.name for b in BACKENDS if b.unusable(torch.device("cpu")) is None]


def mean_of_both(gram: Tensor, reliability: Tensor, layout: Layout) -> Tensor:
    """Rows that point apart both become their mean, weighted by reliability."""
    r_rgb, r_ir = reliability.double()
    share = torch.where(r_rgb + r_ir > 0, r_rgb / (r_rgb + r_ir), 0.5)
    row = torch.stack([share, 1 - share], 1)
    mean = torch.stack([row, row], 1)
    return torch.where((gram[:, 2] < 0)[:, None, None], mean, torch.eye(2, dtype=torch.float64))


def given() -> tuple[list[Tensor], list[Tensor], Reliability]:
    rgb, ir = cases.AWKWARD["several layers"]
    generator = cases.rng(5)
    r = ([torch.rand(len(x), generator=generator) for x in rgb] for _ in range(2))
    return clone(rgb), clone(ir), Reliability(*r)


@pytest.mark.parametrize("backend", USABLE)
def test_it_does_what_it_says(backend: str) -> None:
    rgb, ir, r = given()
    before = clone(rgb), clone(ir)
    record = correct_(rgb, ir, r, rule=mean_of_both, backend=backend)
    assert record.count() > 0
    assert record.strength.count_nonzero() == 0
    for l, rows in enumerate(r.layout.slices()):
        share = (r.rgb[rows] / (r.rgb[rows] + r.ir[rows]))[:, None]
        mean = share * before[0][l] + (1 - share) * before[1][l]
        apart = ((before[0][l] * before[1][l]).sum(1) < 0)[:, None]
        torch.testing.assert_close(rgb[l], torch.where(apart, mean, before[0][l]))
        torch.testing.assert_close(ir[l], torch.where(apart, mean, before[1][l]))
        assert torch.equal(record.layer(l).mask, apart[:, 0])


@pytest.mark.parametrize("backend", USABLE)
def test_ragrads_own_rule_as_a_function_gives_the_same(backend: str) -> None:
    """The verbs one after the other, against the fused path."""
    rule = RaGradRule()
    fused, apart = given(), given()
    found = [
        correct_(*fused, backend=backend),
        correct_(*apart, rule=lambda *operands: rule(*operands), backend=backend),
    ]
    assert torch.equal(found[0].mask, found[1].mask)
    assert torch.equal(found[0].cosine, found[1].cosine)
    for a, b in zip(fused[0] + fused[1], apart[0] + apart[1], strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("backend", USABLE)
def test_with_measured_reliability(backend: str) -> None:
    rgb, ir, _ = given()
    weights = clone(rgb), clone(ir)
    seen = []

    def rule(gram: Tensor, reliability: Tensor, layout: Layout) -> Tensor:
        seen.append(reliability)
        return mean_of_both(gram, reliability, layout)

    repas = [Repa(*weights) for _ in range(2)]
    for t in range(2):
        new = [[x + t for x in side] for side in (rgb, ir)]
        same = [clone(side) for side in new]
        correct_(*new, repas[0], rule=rule, backend=backend)
        correct_(*same, repas[1], backend=backend)
    assert len(seen) == 2
    assert repas[0].reliability is not None
    assert repas[1].reliability is not None
    torch.testing.assert_close(repas[0].reliability.values, repas[1].reliability.values)
    assert torch.equal(seen[1], repas[0].reliability.values)


def test_in_training() -> None:
    model = TwoStream()
    ragrad = RaGrad(model.rgb, model.ir, rule=mean_of_both)
    ragrad.backward(loss_of(model))
    record = ragrad.correct_()
    l = next(l for l in range(len(record)) if record.layer(l).count())
    i = int(record.layer(l).mask.nonzero()[0])
    torch.testing.assert_close(ragrad.pairs.rgb[l].grad[i], ragrad.pairs.ir[l].grad[i])


@pytest.mark.slow
@pytest.mark.parametrize("backend", USABLE)
@pytest.mark.parametrize("rule", ["pcgrad", "imtl", mean_of_both])
def test_compiled(rule: Any, backend: str) -> None:
    eager, compiled = given(), given()
    run = torch.compile(lambda rgb, ir, r: correct_(rgb, ir, r, rule=rule, backend=backend).mask)
    mask = correct_(*eager, rule=rule, backend=backend).mask
    assert torch.equal(run(*compiled), mask)
    for a, b in zip(eager[0] + eager[1], compiled[0] + compiled[1], strict=True):
        torch.testing.assert_close(a, b)


def returning(make: Callable[[Tensor], Any]) -> Callable[..., Any]:
    return lambda gram, reliability, layout: make(
        torch.eye(2, dtype=torch.float64).repeat(layout.rows, 1, 1)
    )


def with_a(value: float) -> Callable[[Tensor], Tensor]:
    def change(matrices: Tensor) -> Tensor:
        matrices[6, 0, 1] = value
        return matrices

    return change


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda m: m[:-1], ValueError, r"returned shape \(42, 2, 2\); return .* \(43, 2, 2\)"),
        (lambda m: m[..., 0], ValueError, r"returned shape \(43, 2\)"),
        (lambda m: m.long(), TypeError, r"returned torch.int64"),
        (lambda m: None, TypeError, r"returned NoneType"),
        (with_a(float("nan")), ValueError, r"nan.* for row 6 \(channel 2 of layer 1\)"),
        (with_a(float("inf")), ValueError, r"inf.* for row 6 \(channel 2 of layer 1\)"),
    ],
)
@pytest.mark.parametrize("backend", USABLE)
def test_what_is_no_matrix_is_named_and_nothing_is_touched(
    make: Callable[[Tensor], Any], error: type[Exception], match: str, backend: str
) -> None:
    rgb, ir, r = given()
    before = clone(rgb), clone(ir)
    with pytest.raises(error, match=match):
        correct_(rgb, ir, r, rule=returning(make), backend=backend)
    for a, b in zip(rgb + ir, before[0] + before[1], strict=True):
        assert torch.equal(a, b)


def test_a_nan_for_a_layer_that_is_not_finite_is_no_error() -> None:
    """There the Gram matrix is nan, and the row keeps its bytes whatever the rule says."""
    rgb, ir, r = given()
    rgb[1][2, 0] = float("nan")
    correct_(rgb, ir, r, rule=returning(with_a(float("nan"))))


def test_a_rule_that_reads_reliability_needs_some() -> None:
    rgb, ir, _ = given()
    with pytest.raises(ValueError, match="stats is None, and RaGrad's own rule"):
        correct_(rgb, ir)
    with pytest.raises(ValueError, match='this Repa has factors="none"'):
        correct_(rgb, ir, Repa(clone(rgb), clone(ir), factors="none"))


def test_a_rule_without_statistics_is_given_none() -> None:
    rgb, ir, _ = given()

    def nothing(gram: Tensor, reliability: Tensor | None, layout: Layout) -> Tensor:
        assert reliability is None
        return torch.eye(2).repeat(layout.rows, 1, 1)

    record = correct_(rgb, ir, rule=nothing)
    assert record.count() == 0
    assert record.gap.count_nonzero() == 0


@pytest.mark.parametrize("backend", USABLE)
@pytest.mark.parametrize("rule", ["ragrad", "pcgrad", mean_of_both])
def test_the_record_of_a_skipped_pair_is_all_zeros(rule: Any, backend: str) -> None:
    rgb, ir, r = given()
    grads: list[Tensor | None] = [*ir]
    grads[1] = None
    record = correct_(rgb, grads, r, rule=rule, backend=backend).layer(1)
    for column in (record.cosine, record.gap, record.mask, record.strength):
        assert column.count_nonzero() == 0
