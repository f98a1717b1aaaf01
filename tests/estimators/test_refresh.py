"""When an estimator measures, what it keeps, and what remains after a refresh that fails."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from ragrad_ext import (
    Effectiveness,
    FiniteDifference,
    FirstOrder,
    Gate,
    Hutchinson,
    RaGrad,
    correct_,
)
from ragrad_ext.estimators import Refreshed
from ragrad_ext.estimators.research import (
    Fisher,
    GateQuadratic,
    GaussNewtonBartlett,
    Removal,
    RowQuadratic,
    sampled_cross_entropy,
)

from ..lib.networks import TwoStream, batch, loss_of, step, watched


class Told(Refreshed):
    """Measures the values that it is given, and records which pairs it was asked for."""

    def __init__(self, *values: float, **schedule: float) -> None:
        super().__init__(**schedule)
        self.values = iter(values)
        self.asked: list[list[int]] = []

    def from_graph(self, loss: Tensor, closure: object) -> Tensor:
        self.asked.append(list(self.layers))
        return torch.full_like(self.held, next(self.values))


def test_an_average_is_the_weighted_mean_of_the_refreshes_so_far() -> None:
    """beta = 1/2: weights 1; 1/3, 2/3; 1/7, 2/7, 4/7. A zero start would give 1/2 of the first."""
    told = Told(7.0, 10.0, 14.0, every=1, average=0.5)
    model, ragrad = watched(told)
    found = []
    for t in range(3):
        step(ragrad, model, t)
        found.append(told.held[0, 0].item())
    assert found == pytest.approx([7, 7 / 3 + 20 / 3, 1 + 20 / 7 + 8])


def test_a_dropped_value_does_not_count_in_the_average() -> None:
    told = Told(7.0, float("nan"), float("inf"), 10.0, every=1, average=0.5)
    model, ragrad = watched(told)
    for t in range(4):
        step(ragrad, model, t)
    assert told.held[0, 0].item() == pytest.approx(7 / 3 + 20 / 3)
    assert int(told.dropped) == 2 * told.held.numel()


def test_a_spread_refresh_measures_pairs_in_turn() -> None:
    told = Told(1.0, 2.0, 3.0, 4.0, every=5, spread=2)
    model, ragrad = watched(told)
    first = RaGrad(model.rgb, model.ir, effectiveness=FirstOrder())
    values = []
    for t in range(8):
        effect, plain = step(ragrad, model, t), step(first, model, t)
        values.append([(effect - plain)[0, row].item() for row in (0, 6)])  # a row of either pair
    assert told.asked == [[0], [1], [0], [1]]
    # Steps 0 and 2: a part each. Until both are there, all rows are first order.
    expected = [[0, 0], [0, 0], [1, 2], [1, 2], [1, 2], [3, 2], [3, 2], [3, 4]]
    assert values == [pytest.approx(row) for row in expected]


def test_a_run_that_was_measured_in_parts_may_resume_without_them() -> None:
    parts = Told(1.0, 2.0, every=2, spread=2)
    model, ragrad = watched(parts)
    step(ragrad, model, 0)
    step(ragrad, model, 0)
    whole = Told(3.0, every=4)
    _, resumed = watched(whole)
    resumed.load_state_dict(ragrad.state_dict())
    assert whole.whole
    assert torch.equal(whole.held, parts.held)


@pytest.mark.parametrize(
    "make",
    [
        lambda spread: Hutchinson(every=4, spread=spread),
        lambda spread: FiniteDifference(every=4, spread=spread),
        lambda spread: FiniteDifference(every=4, spread=spread, sides=1),
        lambda spread: RowQuadratic(every=4, spread=spread),
        lambda spread: GateQuadratic(every=4, spread=spread),
        lambda spread: Removal(every=4, spread=spread),
        lambda spread: Fisher(every=4, spread=spread),
    ],
)
def test_a_part_of_a_refresh_changes_its_own_rows_only(make: Callable[[int], Refreshed]) -> None:
    """More parts than pairs: those without any measure nothing, and every row gets its value."""
    estimator = make(3)
    model, ragrad = watched(estimator, norm="group", activation=nn.Tanh)
    slices = ragrad.repa.layout.slices()
    changed = []
    for t in range(4):
        before = estimator.held.clone()
        step(ragrad, model, 0)
        changed.append([bool((estimator.held != before)[:, rows].any()) for rows in slices])
        assert estimator.step == t + 1
    assert changed == [[True, False], [False, True], [False, False], [False, False]]
    assert estimator.whole


def no_memory(*args: object, **kwargs: object) -> Tensor:
    return torch.empty(2**60)  # raises the allocator's own error


def out_of_memory(*args: object, **kwargs: object) -> Tensor:
    raise torch.OutOfMemoryError("no memory left")


@pytest.mark.parametrize("fail", [no_memory, out_of_memory])
@pytest.mark.parametrize("failing", [1, 2])
def test_out_of_memory_skips_the_refresh_and_leaves_the_step(
    fail: Callable[[], Tensor], failing: int
) -> None:
    """In either micro-batch of a step: its gradient, the weights and q are as without a refresh."""
    estimator = FiniteDifference(every=1)
    model, ragrad = watched(estimator)
    plain = TwoStream()
    before = {k: v.clone() for k, v in model.state_dict().items()}

    def one_step(*micro_batches: int, failing: int | None = None) -> None:
        model.zero_grad()
        plain.zero_grad()
        for t in micro_batches:
            closure = fail if t == failing else partial(loss_of, model, t)
            ragrad.backward(loss_of(model, t), closure=closure)
            loss_of(plain, t).backward()
        for (name, a), b in zip(model.named_parameters(), plain.parameters(), strict=True):
            assert a.grad is not None
            assert b.grad is not None
            assert torch.equal(a.grad, b.grad), name
        ragrad.correct_()

    one_step(0)
    held = estimator.held.clone()
    with pytest.warns(UserWarning, match="ran out of memory and skips this refresh"):
        one_step(1, 2, failing=failing)
    assert estimator.skipped == 1
    assert torch.equal(estimator.held, held)
    assert ragrad.repa.effect is not None
    assert ragrad.repa.effect.isfinite().all()
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name])
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the second time is silent
        one_step(1, 2, failing=failing)
        assert estimator.skipped == 2
        one_step(3)
    assert not torch.equal(estimator.held, held)


def test_other_errors_of_a_closure_reach_the_user() -> None:
    model, ragrad = watched(FiniteDifference())

    def broken() -> Tensor:
        raise RuntimeError("shape mismatch")

    with pytest.raises(RuntimeError, match="shape mismatch"):
        ragrad.backward(loss_of(model), closure=broken)


def test_a_model_that_changes_is_noticed_at_the_next_refresh() -> None:
    told = Told(1.0, 2.0, 3.0, 4.0, every=2, average=0.9)
    model, ragrad = watched(told)
    for _ in range(3):
        step(ragrad, model, 0)
    assert told.held[0, 0].item() == pytest.approx((0.9 * 1 + 2) / 1.9)
    step(ragrad, model, 0)
    model.rgb[1].eval()  # statistics of the batch before, fixed ones from now on
    with pytest.warns(UserWarning, match="the model has changed since Told last measured"):
        step(ragrad, model, 0)
    assert told.held[0, 0].item() == 3.0  # nothing of what was measured before
    step(ragrad, model, 0)
    step(ragrad, model, 0)
    assert told.held[0, 0].item() == pytest.approx((0.9 * 3 + 4) / 1.9)


def test_a_changed_model_is_first_order_until_all_parts_are_measured_again() -> None:
    told = Told(1.0, 2.0, 3.0, 4.0, every=2, spread=2)
    model, ragrad = watched(told)
    step(ragrad, model, 0)
    step(ragrad, model, 0)
    assert told.whole
    model.rgb[1].eval()
    with pytest.warns(UserWarning, match="the model has changed"):
        step(ragrad, model, 0)
    assert not told.whole
    step(ragrad, model, 0)
    assert told.whole


def test_another_batch_size_or_a_teacher_is_no_change() -> None:
    told = Told(*range(1, 9), every=1)
    model, ragrad = watched(told)
    teacher = nn.Linear(2, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for size in (8, 4):
            rgb, ir, label = batch(0, size)
            ragrad.backward(teacher(torch.ones(1, 2)).sum())
            ragrad.backward(nn.functional.cross_entropy(model(rgb, ir), label))
            ragrad.backward(teacher(torch.ones(1, 2)).sum())
            ragrad.correct_()


def test_a_closure_over_half_of_the_batch_measures_that_half() -> None:
    """A mean over half of the images: q is that half's, not half of it."""
    rgb, ir, label = batch(0, 8)

    def loss(n: int) -> Tensor:
        return nn.functional.cross_entropy(model(rgb[:n], ir[:n]), label[:n])

    model = TwoStream("group", activation=nn.Tanh)
    q = []
    for whole, part in ((8, 4), (4, 4)):
        estimator = FiniteDifference(every=1)
        ragrad = RaGrad(model.rgb, model.ir, effectiveness=estimator)
        ragrad.backward(loss(whole), closure=lambda n=part: loss(n))  # type: ignore[misc]
        ragrad.correct_()
        q.append(estimator.held)
    assert torch.equal(*q)


def test_every_seed_and_every_refresh_draws_other_probes() -> None:
    signs = []
    for seed in (0, 1, 2**40):
        estimator = Hutchinson(every=1, seed=seed)
        model, ragrad = watched(estimator, norm="group")
        for t in (0, 0):
            step(ragrad, model, t)
            signs.append(estimator.held)
    assert not any(torch.equal(a, b) for i, a in enumerate(signs) for b in signs[:i])


EVERY_KIND: list[Callable[[], Refreshed]] = [
    lambda: Hutchinson(2, every=2, spread=2),
    lambda: FiniteDifference(2, every=2),
    lambda: FiniteDifference(2, sides=1, every=3, spread=2, form="weighted"),
    lambda: RowQuadratic(every=2),
    lambda: RowQuadratic(product="one-sided", every=2),
    lambda: GateQuadratic(every=2),
    lambda: GateQuadratic(product="central", every=2),
    lambda: GateQuadratic(product="one-sided", every=2, spread=2),
    lambda: GaussNewtonBartlett(2, every=2),
    lambda: Fisher(every=2),
    lambda: Removal(every=3),
]


@pytest.mark.parametrize("make", EVERY_KIND)
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.filterwarnings("ignore:.*closure draws random numbers")
def test_refreshes_alone_do_not_change_a_training(
    make: Callable[[], Refreshed], dropout: float
) -> None:
    """Weights, BatchNorm statistics, the optimizer's moments and the random state: bit for bit."""

    def train(model: TwoStream, ragrad: RaGrad | None) -> dict[str, Tensor]:
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        torch.manual_seed(5)
        for t in range(5):
            optimizer.zero_grad()
            rgb, ir, label = batch(t)
            logits = model(rgb, ir)
            loss = nn.functional.cross_entropy(logits, label)
            if ragrad is None:
                loss.backward()
            else:
                sampled = isinstance(ragrad.repa.effectiveness, GaussNewtonBartlett)
                ragrad.backward(
                    loss,
                    closure=lambda: (
                        sampled_cross_entropy(logits) if sampled else loss_of(model, t)  # noqa: B023
                    ),
                )
                sides = ragrad.pairs.rgb, ragrad.pairs.ir
                correct_(*([p.grad.clone() for p in side] for side in sides), ragrad.repa)
            optimizer.step()
        moments = [s["exp_avg_sq"] for s in optimizer.state.values()]
        named = {f"moment {i}": moment for i, moment in enumerate(moments)}
        return {**model.state_dict(), **named, "random": torch.get_rng_state()}

    plain = train(TwoStream(dropout=dropout), None)
    model, ragrad = watched(make(), dropout=dropout)
    found = train(model, ragrad)
    assert isinstance(ragrad.repa.effectiveness, Refreshed)
    assert ragrad.repa.effectiveness.whole
    assert all(torch.equal(plain[name], found[name]) for name in plain)


@pytest.mark.parametrize(
    "make",
    [
        FiniteDifference,
        lambda: RowQuadratic(product="central"),
        lambda: GateQuadratic(product="one-sided"),
        GaussNewtonBartlett,
        Removal,
    ],
)
def test_without_a_closure_the_error_names_other_estimators(
    make: Callable[[], Effectiveness],
) -> None:
    model, ragrad = watched(make())
    match = r"ragrad.backward\(loss, closure=.*Gate,\s+FirstOrder and Hutchinson need no closure"
    with pytest.raises(RuntimeError, match=match):
        ragrad.backward(loss_of(model))


def test_the_second_order_gate_has_the_first_order_of_the_gate() -> None:
    model = TwoStream()
    effects = [
        step(RaGrad(model.rgb, model.ir, effectiveness=e), model, 0)
        for e in (Gate(), GateQuadratic(every=1, spread=1))
    ]
    estimator = GateQuadratic(every=2, spread=2)
    ragrad = RaGrad(model.rgb, model.ir, effectiveness=estimator)
    partial = step(ragrad, model, 0)  # one part of two: first order
    assert torch.equal(partial, effects[0])
    assert not torch.equal(effects[1], effects[0])


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Hutchinson(every=3, spread=4), "spread=4; 3 steps hold 1 to 3"),
        (lambda: Hutchinson(form="columns"), "form='columns' is unknown"),  # type: ignore[arg-type]
        (lambda: RowQuadratic(product="exact"), "product='exact' is unknown"),  # type: ignore[arg-type]
        (lambda: FiniteDifference(sides=3), "sides=3"),
        (lambda: GaussNewtonBartlett(0), "probes=0"),
        (lambda: Removal(at_once=0), "at_once=0"),
        (lambda: Removal(at_once=8), "at_once=8 needs the model"),
    ],
)
def test_bad_options_are_named(make: Callable[[], Effectiveness], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        make()
