"""The estimators of Eq. 1: by hand, from step to step, and without a trace."""

from __future__ import annotations

import io
from collections.abc import Callable

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
    Repa,
    correct_,
)
from ragrad_ext.estimators.research import Fisher, GateQuadratic, Removal, RowQuadratic

from ..lib.networks import TwoStream, loss_of, step, watched
from ..lib.tolerances import FINITE_DIFFERENCE


class TestByHand:
    """L = 1/2 sum a theta^2 has the diagonal Hessian a, so Eq. 2 is Eq. 1 for any probe."""

    def setup_method(self) -> None:
        self.theta = nn.Parameter(torch.tensor([[1.0, 2.0], [0.5, -1.0]]))
        self.other = nn.Parameter(torch.tensor([[1.0, 0.0], [0.0, 3.0]]))
        self.a = torch.tensor([[3.0, -1.0], [2.0, 4.0]])
        # L(0 in row i) - L = -1/2 sum_j a_j theta_j^2
        self.eq1 = [[-0.5 * (3 - 4), -0.5 * (0.5 + 4)], [-0.5 * 3, -0.5 * 36]]

    def loss(self) -> Tensor:
        return 0.5 * (self.a * (self.theta.square() + self.other.square())).sum()

    def effect(self, estimator: Effectiveness, *, closure: bool = False) -> list:
        repa = Repa([self.theta], [self.other], effectiveness=estimator)
        loss = self.loss()
        repa.before_backward(loss, self.loss if closure else None)
        loss.backward()
        repa.after_backward(self.loss if closure else None)
        correct_([self.theta.grad], [self.other.grad], repa)
        assert repa.effect is not None
        return repa.effect.tolist()

    def test_hutchinson_is_exact_here(self) -> None:
        assert self.effect(Hutchinson()) == [pytest.approx(row) for row in self.eq1]

    def test_finite_difference_is_exact_here_up_to_rounding(self) -> None:
        found = self.effect(FiniteDifference(), closure=True)
        assert found == [pytest.approx(row, rel=FINITE_DIFFERENCE) for row in self.eq1]

    def test_first_order_has_twice_the_slope(self) -> None:
        # -g theta = -a theta^2
        assert self.effect(FirstOrder()) == [[2 * x for x in row] for row in self.eq1]

    def test_a_gate_without_norm_and_activation_is_first_order(self) -> None:
        assert self.effect(Gate()) == [[2 * x for x in row] for row in self.eq1]

    def test_an_untraced_gate_is_first_order(self) -> None:
        repa = Repa([self.theta], [self.other], effectiveness=Gate())
        self.loss().backward()
        correct_([self.theta.grad], [self.other.grad], repa)
        assert repa.effect is not None
        assert repa.effect.tolist() == [[2 * x for x in row] for row in self.eq1]

    def test_fisher(self) -> None:
        # row 0 of rgb: g = a theta = (3, -2); -g theta + 1/2 sum g^2 theta^2
        #             = -(3 - 4) + (9 * 1 + 4 * 4) / 2 = 13.5
        # row 1: g = (1, -4): -(0.5 + 4) + (1 * 0.25 + 16 * 1) / 2 = 3.625
        assert self.effect(Fisher())[0] == [13.5, 3.625]


def refreshing() -> list[Callable[[], Effectiveness]]:
    return [
        lambda: Hutchinson(probes=2, every=1),
        lambda: FiniteDifference(probes=2, every=1),
        lambda: RowQuadratic(probes=2, every=1, product="central"),
        lambda: GateQuadratic(probes=2, every=1),
        lambda: GateQuadratic(probes=2, every=1, product="central"),
        lambda: Removal(every=1),
        lambda: Fisher(every=1),
        Gate,
    ]


@pytest.mark.parametrize("make", refreshing())
def test_a_refresh_does_not_change_the_step(make: Callable[[], Effectiveness]) -> None:
    """Gradients, BatchNorm statistics, dropout and random state: bit for bit."""

    def steps(ragrad: RaGrad | None, model: TwoStream) -> None:
        torch.manual_seed(5)
        for t in range(3):
            model.zero_grad()
            loss = loss_of(model, t)
            if ragrad is None:
                loss.backward()
            else:
                ragrad.backward(loss, closure=lambda t=t: loss_of(model, t))  # type: ignore[misc]
                # Observe, so that the estimator goes on to its next refresh, without correcting.
                sides = ragrad.pairs.rgb, ragrad.pairs.ir
                correct_(*([p.grad.clone() for p in side] for side in sides), ragrad.repa)

    plain, model = TwoStream(dropout=0.3), TwoStream(dropout=0.3)
    steps(None, plain)
    state = torch.get_rng_state()
    steps(RaGrad(model.rgb, model.ir, effectiveness=make()), model)
    assert torch.equal(torch.get_rng_state(), state)
    for (name, a), b in zip(plain.state_dict().items(), model.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    for (name, p), w in zip(plain.named_parameters(), model.parameters(), strict=True):
        assert p.grad is not None, name
        assert w.grad is not None, name
        assert torch.equal(p.grad, w.grad), name
    assert all(not m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize(
    "make",
    [
        lambda: Hutchinson(every=2, average=0.9, seed=3),
        lambda: FiniteDifference(every=2, average=0.9, seed=3),
        lambda: FiniteDifference(sides=1, every=2, spread=2, average=0.9, seed=3),
        lambda: RowQuadratic(every=2, average=0.9, spread=2, seed=3),
        lambda: GateQuadratic(every=2, average=0.9, product="one-sided"),
        lambda: Removal(every=2, average=0.9),
        lambda: Fisher(every=2),
        Gate,
    ],
)
def test_a_resumed_training_continues_bit_for_bit(make: Callable[[], Effectiveness]) -> None:
    def train(model: TwoStream, ragrad: RaGrad, steps: range) -> None:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        for t in steps:
            torch.manual_seed(t)
            optimizer.zero_grad()
            ragrad.backward(loss_of(model, t), closure=lambda t=t: loss_of(model, t))  # type: ignore[misc]
            ragrad.correct_()
            optimizer.step()

    whole = TwoStream()
    train(whole, RaGrad(whole.rgb, whole.ir, effectiveness=make()), range(7))
    first = TwoStream()
    ragrad = RaGrad(first.rgb, first.ir, effectiveness=make())
    train(first, ragrad, range(3))
    file = io.BytesIO()
    torch.save({"model": first.state_dict(), "ragrad": ragrad.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    second = TwoStream(seed=1)
    resumed = RaGrad(second.rgb, second.ir, effectiveness=make())
    second.load_state_dict(saved["model"])
    resumed.load_state_dict(saved["ragrad"])
    train(second, resumed, range(3, 7))
    for a, b in zip(whole.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


def test_curvature_sums_over_micro_batches_as_the_gradient_does() -> None:
    both, alone = Hutchinson(probes=4, every=1), Hutchinson(probes=4, every=1)
    model, ragrad = watched(both, norm="group")
    step(ragrad, model, 0, 1)
    model, ragrad = watched(alone, norm="group")
    parts = []
    for t in (0, 1):  # the second step draws what the second micro-batch drew
        step(ragrad, model, t)
        parts.append(alone.held)
    assert torch.equal(both.held, parts[0] + parts[1])
    assert not torch.equal(*parts)


def test_q_is_held_between_refreshes_then_averaged() -> None:
    averaged, latest = Hutchinson(every=3, average=0.75), Hutchinson(every=3)
    history, new = [], []
    for estimator, found in ((averaged, history), (latest, new)):
        model, ragrad = watched(estimator, norm="group")
        for t in range(4):
            step(ragrad, model, t)
            found.append(estimator.held.clone())
    assert torch.equal(history[0], history[1])
    assert torch.equal(history[1], history[2])
    # As Adam's moments: weights 0.25 and 0.75 * 0.25 of the newer and the older, over their sum
    share = 0.25 / (1 - 0.75**2)
    torch.testing.assert_close(history[3], (1 - share) * new[0] + share * new[3])


def test_non_finite_curvature_is_dropped_and_counted() -> None:
    """|theta|^1.5 at 0: the first derivative is 0, the second is not finite."""
    weight = nn.Parameter(torch.tensor([[0.0, 0.0], [1.0, 2.0]]))
    twin = nn.Parameter(torch.ones(2, 2))
    estimator = Hutchinson()
    repa = Repa([weight], [twin], effectiveness=estimator)
    loss = weight.abs().pow(1.5).sum() + twin.square().sum()
    repa.before_backward(loss)
    loss.backward()
    grads = [weight.grad], [twin.grad]
    assert all(g is not None and g.isfinite().all() for side in grads for g in side)
    correct_(*grads, repa)
    assert int(estimator.dropped) == 1
    assert estimator.held[0].tolist()[0] == 0.0
    assert estimator.held.isfinite().all()
    assert repa.reliability is not None
    assert repa.reliability.values.isfinite().all()


def test_fisher_keeps_q_of_a_pair_that_is_skipped() -> None:
    one, two = torch.ones(2, 2), 2 * torch.ones(2, 2)
    estimator = Fisher(every=1)
    repa = Repa([one, one.clone()], [two, two.clone()], effectiveness=estimator)
    correct_([one.clone(), one.clone()], [one.clone(), one.clone()], repa)
    before = estimator.held.clone()
    assert before[0].tolist() == [1.0, 1.0, 1.0, 1.0]  # 1/2 (1 + 1)
    correct_([3 * one, None], [3 * one, one.clone()], repa)
    assert torch.equal(estimator.held[:, :2], 9 * before[:, :2])
    assert torch.equal(estimator.held[:, 2:], before[:, 2:])


def test_out_of_memory_is_not_called_a_missing_derivative(monkeypatch: pytest.MonkeyPatch) -> None:
    model = TwoStream()
    ragrad = RaGrad(model.rgb, model.ir, effectiveness=Hutchinson())
    loss = loss_of(model)

    def full(*args: object, **kwargs: object) -> None:
        raise torch.OutOfMemoryError("no memory left")

    monkeypatch.setattr(torch.autograd, "grad", full)
    with pytest.warns(UserWarning, match=r"Hutchinson ran out of memory.*no memory left"):
        ragrad.backward(loss)


class NoSecond(torch.autograd.Function):
    """x -> x^2, without a double backward, as RoIAlign has none."""

    @staticmethod
    def forward(ctx, x):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):  # type: ignore[no-untyped-def]
        return 2 * ctx.saved_tensors[0] * g


def test_without_double_backward_an_error_names_finite_differences_and_they_work() -> None:
    weight, twin = (nn.Parameter(torch.tensor([[1.0, 2.0]])) for _ in range(2))

    def loss() -> Tensor:
        return NoSecond.apply(weight + twin).square().sum() / 48

    with pytest.raises(
        RuntimeError, match=r"second derivative of every operator.*FiniteDifference"
    ):
        Repa([weight], [twin], effectiveness=Hutchinson()).before_backward(loss())
    estimator = FiniteDifference()
    ragrad = RaGrad([weight], [twin], effectiveness=estimator)
    ragrad.backward(loss(), closure=loss)
    ragrad.correct_()
    # Per weight L = (w + t)^4 / 48, h = (w + t)^2 / 4 = theta^2, the same between twins: z * Hz
    # is h (1 +- 1), and q = 1/2 sum h theta^2 (1 +- 1) has terms 0 or theta^4 = 1, 16
    q = float(estimator.held[0])
    assert min(abs(q - exact) for exact in (0, 1, 16, 17)) < 17 * FINITE_DIFFERENCE


def test_missing_inputs_are_named() -> None:
    model = TwoStream()
    ragrad = RaGrad(model.rgb, model.ir, effectiveness=Hutchinson())
    loss_of(model).backward()
    before = [p.grad.clone() for p in ragrad.pairs.rgb if p.grad is not None]
    with pytest.raises(
        RuntimeError, match=r"Hutchinson must see the loss.*ragrad.backward\(loss\)"
    ):
        ragrad.correct_()
    assert all(torch.equal(a, p.grad) for a, p in zip(before, ragrad.pairs.rgb, strict=True))  # type: ignore[arg-type]
    ragrad = RaGrad(model.rgb, model.ir, effectiveness=FiniteDifference())
    with pytest.raises(RuntimeError, match=r"closure=lambda.*Gate, FirstOrder and Hutchinson need"):
        ragrad.backward(loss_of(model))


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Hutchinson(every=0), "every=0"),
        (lambda: Hutchinson(probes=0), "probes=0"),
        (lambda: FiniteDifference(step=0.0), "step=0.0"),
        (lambda: Fisher(average=1.0), r"average=1.0; .*\[0, 1\)"),
    ],
)
def test_bad_options_are_named(make: Callable[[], Effectiveness], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        make()


def test_an_option_that_does_not_exist_is_named() -> None:
    with pytest.raises(TypeError, match="'evry'"):
        Hutchinson(evry=10)


class Traced(FirstOrder):
    """Asks for the graph of a forward, and counts how often it gets one."""

    traced = 0

    @property
    def needs_trace(self) -> bool:
        return self.traced == 0

    def trace(self, *outputs: Tensor) -> None:
        assert all(t.grad_fn is not None for t in outputs)
        self.traced += 1


def test_any_estimator_may_ask_for_a_trace() -> None:
    estimator = Traced()
    model, ragrad = watched(estimator)
    loss_of(model).backward()
    with pytest.raises(
        RuntimeError, match=r"Traced has seen no loss to trace: call\s+ragrad.backw"
    ):
        ragrad.correct_()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    ragrad.attach(optimizer)
    for _ in range(2):
        optimizer.zero_grad()
        loss_of(model).backward()
        optimizer.step()
    assert estimator.traced == 1  # only the first step is watched
