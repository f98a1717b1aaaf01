"""One-sided differences: when the step's own gradient can be one side, and when not."""

from __future__ import annotations

import itertools
import warnings

import pytest
import torch
from torch import nn

from ragrad_ext import FiniteDifference, RaGrad

from ...lib.networks import TwoStream, assert_near, batch, loss_of, step, watched
from ...lib.tolerances import MOVED, ONE_SIDED, ONE_STEP_BFLOAT16


def test_one_sided_differences_add_up_over_micro_batches() -> None:
    together = FiniteDifference(sides=1, every=1)
    model, ragrad = watched(together, norm="group", activation=nn.Tanh)
    step(ragrad, model, 0, 1)
    parts = []
    for t in (0, 1):  # both micro-batches use the same probe
        alone = FiniteDifference(sides=1, every=1)
        step(RaGrad(model.rgb, model.ir, effectiveness=alone), model, t)
        parts.append(alone.held)
    assert_near(together.held, parts[0] + parts[1], ONE_SIDED)


def test_one_sided_differences_of_a_closure_that_draws_turn_central() -> None:
    """Dropout differs between the step and its closure, so their gradients are of two functions."""
    torch.manual_seed(0)
    one, two = FiniteDifference(2, sides=1, every=1), FiniteDifference(2, every=1)
    model, ragrad = watched(one, dropout=0.3)
    other, central = watched(two, dropout=0.3)
    state = torch.get_rng_state()
    with pytest.warns(UserWarning, match=r"the closure draws random numbers.*Central"):
        step(ragrad, model, 0)
    torch.set_rng_state(state)
    step(central, other, 0)
    assert torch.equal(one.held, two.held)


def test_a_closure_that_starts_to_draw_within_a_step_loses_that_refresh() -> None:
    one = FiniteDifference(sides=1, every=1)
    model, ragrad = watched(one)
    ragrad.backward(loss_of(model, 0), closure=lambda: loss_of(model, 0))
    with pytest.warns(UserWarning, match="the closure draws random numbers"):
        ragrad.backward(loss_of(model, 1), closure=lambda: loss_of(model, 1) + 0 * torch.rand(()))
    ragrad.correct_()
    assert int(one.dropped) == one.held.numel()


def test_a_closure_that_starts_to_draw_at_a_later_probe_loses_that_refresh() -> None:
    one = FiniteDifference(3, sides=1, every=1)
    model, ragrad = watched(one)
    calls = itertools.count()

    def closure() -> torch.Tensor:
        loss = loss_of(model)
        return loss if next(calls) == 0 else loss + 0 * torch.rand(())

    with pytest.warns(UserWarning, match="the closure draws random numbers"):
        ragrad.backward(loss_of(model), closure=closure)
    ragrad.correct_()
    assert int(one.dropped) == one.held.numel()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_resumed_run_goes_on_with_central_differences(dtype: torch.dtype) -> None:
    """Bit for bit, and without a second warning. In bfloat16 the two kinds take other steps."""

    def steps(model: TwoStream, ragrad: RaGrad, numbers: range) -> None:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        for t in numbers:
            torch.manual_seed(t)
            optimizer.zero_grad()
            rgb, ir, label = batch(t)

            def loss(of: tuple = (rgb.to(dtype), ir.to(dtype), label)) -> torch.Tensor:
                return nn.functional.cross_entropy(model(*of[:2]), of[2])

            ragrad.backward(loss(), closure=loss)
            ragrad.correct_()
            optimizer.step()

    def make() -> tuple[TwoStream, RaGrad]:
        model = TwoStream("group", dropout=0.3).to(dtype)
        estimator = FiniteDifference(sides=1, every=2, seed=3)
        return model, RaGrad(model.rgb, model.ir, effectiveness=estimator)

    whole, first, second = make(), make(), make()
    with pytest.warns(UserWarning, match="the closure draws random numbers"):
        steps(*whole, range(4))
    with pytest.warns(UserWarning, match="the closure draws random numbers"):
        steps(*first, range(2))
    second[0].load_state_dict(first[0].state_dict())
    second[1].load_state_dict(first[1].state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        steps(*second, range(2, 4))
    held = [ragrad.repa.state_dict()["effectiveness"]["held"] for _, ragrad in (whole, second)]
    assert torch.equal(*held)
    for a, b in zip(whole[0].parameters(), second[0].parameters(), strict=True):
        assert torch.equal(a, b)


def test_one_sided_differences_are_central_where_gradients_are_means_of_processes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ragrad_ext.estimators.taylor.probed.several", lambda: True)
    one, two = FiniteDifference(sides=1, every=1), FiniteDifference(every=1)
    for estimator in (one, two):
        model, ragrad = watched(estimator)
        step(ragrad, model, 0)
    assert torch.equal(one.held, two.held)


def test_a_missing_gradient_is_dropped_and_not_counted_as_zero() -> None:
    one = FiniteDifference(sides=1, every=1)
    model, ragrad = watched(one)
    ragrad.backward(loss_of(model), closure=lambda: loss_of(model))
    model.rgb[0].weight.grad = None
    ragrad.correct_()
    assert int(one.dropped) == 6
    assert (one.held[0, :6] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_default_step_moves_weights_of_any_dtype(dtype: torch.dtype) -> None:
    """L = 1/2 theta^2: each product is exact but for the rounding of what was moved, 2^-9 / s."""
    weight, twin = (nn.Parameter(torch.tensor([[1.0, -0.5]], dtype=dtype)) for _ in range(2))

    def loss() -> torch.Tensor:
        return 0.5 * (weight.square().sum() + twin.square().sum())

    for sides in (1, 2):
        estimator = FiniteDifference(sides=sides)
        ragrad = RaGrad([weight], [twin], effectiveness=estimator)
        weight.grad = twin.grad = None
        ragrad.backward(loss(), closure=loss)
        ragrad.correct_()
        found = estimator.held.flatten().tolist()
        assert found == pytest.approx([0.625, 0.625], rel=ONE_STEP_BFLOAT16)


@pytest.mark.parametrize("scale", [1.0, 1e-3])
@pytest.mark.parametrize("form", ["diagonal", "weighted"])
def test_the_step_is_a_share_of_the_weights(scale: float, form: str) -> None:
    """Of their root mean square, sqrt((1 + 4 + 2) / 4), or of each weight itself."""
    weight = nn.Parameter(scale * torch.tensor([[1.0, -2.0]]))
    twin = nn.Parameter(scale * torch.tensor([[1.0, 1.0]]))
    moved = []

    def loss() -> torch.Tensor:
        moved.append((weight.detach() - before).abs())
        return weight.square().sum() + twin.square().sum()

    before = weight.detach().clone()
    estimator = FiniteDifference(step=0.25, form=form)  # type: ignore[arg-type]
    RaGrad([weight], [twin], effectiveness=estimator).backward(loss(), closure=loss)
    share = 1.75**0.5 if form == "diagonal" else before.abs() / scale
    expected = (0.25 * scale * share * torch.ones(1, 2)).expand(2, 1, 2)
    torch.testing.assert_close(torch.stack(moved[1:]), expected, rtol=MOVED, atol=0)
    assert torch.equal(weight, before)


@pytest.mark.parametrize("sides", [1, 2])
def test_the_closure_runs_when_the_memory_of_the_graph_is_free(sides: int) -> None:
    """Saved activations of the step are gone by then, so the peak is one graph, not two."""
    model, ragrad = watched(FiniteDifference(sides=sides, every=1))
    alive: list[int] = []

    class Saved:
        def __init__(self, tensor: torch.Tensor) -> None:
            self.tensor = tensor
            alive.append(1)

        def __del__(self) -> None:
            alive.pop()

    with torch.autograd.graph.saved_tensors_hooks(Saved, lambda saved: saved.tensor):
        loss = loss_of(model)
    found: list[int] = []

    def closure() -> torch.Tensor:
        found.append(len(alive))
        return loss_of(model)

    assert alive
    ragrad.backward(loss, closure=closure)
    assert found == [0] * sides
