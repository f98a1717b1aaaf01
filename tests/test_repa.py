"""Eq. 2-5 by hand, and the state of the statistics."""

from __future__ import annotations

import io
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ragrad_ext import FirstOrder, Gate, Hutchinson, Repa, correct_
from ragrad_ext.backends import History, RowSums, registry
from ragrad_ext.backends.reference import Reference
from ragrad_ext.estimators.research import Fisher
from ragrad_ext.reference import normalise
from ragrad_ext.rows.bucket import Bucket

from .lib import cases


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def weights(*shapes: tuple[int, ...]) -> tuple[list[Tensor], list[Tensor]]:
    g = cases.rng(9)
    return tuple([torch.randn(s, generator=g) for s in shapes] for _ in range(2))  # type: ignore[return-value]


def observe(repa: Repa, rgb: list, ir: list) -> Tensor:
    """R of one step, (2, rows); the gradients given are not corrected in place."""
    copies = [[None if x is None else x.clone() for x in side] for side in (rgb, ir)]
    correct_(*copies, repa)
    assert repa.reliability is not None
    return repa.reliability.values


class TestEq3:
    seen = torch.ones(2, dtype=torch.bool)

    def test_pools_both_modalities(self) -> None:
        x = torch.tensor([[0.0, 2.0], [4.0, 6.0]], dtype=torch.float64)  # mean 3, std sqrt(5)
        z = [
            [sigmoid(-3 / 5**0.5), sigmoid(-1 / 5**0.5)],
            [sigmoid(1 / 5**0.5), sigmoid(3 / 5**0.5)],
        ]
        out = normalise(x, self.seen, [2]).tolist()
        assert out[0] == pytest.approx(z[0])
        assert out[1] == pytest.approx(z[1])

    def test_layer_by_layer(self) -> None:
        # layer 0 pools (0, 4): mean 2, std 2; layer 1 pools (2, 6): mean 4, std 2
        x = torch.tensor([[0.0, 2.0], [4.0, 6.0]], dtype=torch.float64)
        out = normalise(x, self.seen, [1, 1]).tolist()
        assert out == [pytest.approx([sigmoid(-1)] * 2), pytest.approx([sigmoid(1)] * 2)]

    @pytest.mark.parametrize("value", [0.0, 1e-30, 3.7, -1e20])
    def test_no_spread_is_one_half(self, value: float) -> None:
        x = torch.full((2, 2), value, dtype=torch.float64)
        x[0, 0] *= 1 + 2**-23  # one ulp of float32 counts as none
        assert normalise(x, self.seen, [2]).tolist() == [[0.5, 0.5], [0.5, 0.5]]

    @pytest.mark.parametrize("scale", [2.0**-66, 2.0**66])
    def test_scale_changes_nothing(self, scale: float) -> None:
        x = torch.randn(2, 9, dtype=torch.float64, generator=cases.rng())
        seen = torch.ones(9, dtype=torch.bool)
        assert torch.equal(normalise(x, seen, [9]), normalise(scale * x, seen, [9]))

    def test_unknown_rows_stay_out_of_the_moments(self) -> None:
        x = torch.tensor([[0.0, 2.0, 99.0], [4.0, 6.0, -99.0]], dtype=torch.float64)
        seen = torch.tensor([True, True, False])
        out = normalise(x, seen, [3])
        assert torch.equal(out[:, :2], normalise(x[:, :2], self.seen, [2]))
        assert out[:, 2].tolist() == [0.5, 0.5]

    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    def test_values_that_are_not_finite_stay_out_too(self, bad: float) -> None:
        x = torch.tensor([[0.0, 4.0, bad], [2.0, 6.0, 3.0]], dtype=torch.float64)
        out = normalise(x, torch.ones(3, dtype=torch.bool), [3])
        # mean 3, population variance (9 + 1 + 1 + 9 + 0) / 5 = 4
        expected = [[sigmoid(-1.5), sigmoid(0.5), 0.5], [sigmoid(-0.5), sigmoid(1.5), 0.5]]
        assert out.tolist() == [pytest.approx(e) for e in expected]


class TestEq4:
    """One row of two weights; the ir gradient stays 0. Pooled, S^ then tells S_rgb from S_ir."""

    steps = ([1.0, 3.0], [3.0, 7.0], [2.0, 5.0])

    def sensitivities(self, **options: object) -> list[float]:
        repa = Repa(*weights((1, 2)), alpha=0.5, **options)  # type: ignore[arg-type]
        out = []
        for g in self.steps:
            observe(repa, [torch.tensor([g])], [torch.zeros(1, 2)])
            out.append(float(repa.state_dict()["sensitivity"][0, 0]))
        return out

    def test_ema_history(self) -> None:
        # t=1: mu = (1, 3), S = 0.        t=2: d = (2, 4), mean d^2 = 10, S = 5, mu = (2, 5).
        # t=3: d = (0, 0), S = 2.5
        assert self.sensitivities() == [0.0, 5.0, 2.5]

    def test_cumulative_history(self) -> None:
        # t=2: mu = (1, 3) + (2, 4) / 2 = (2, 5). t=3: d = 0. Then g = (5, 8): d = (3, 3), and
        # mu moves by a quarter of it, to (2.75, 5.75), not by a half
        assert self.sensitivities(history="cumulative") == [0.0, 5.0, 2.5]
        repa = Repa(*weights((1, 2)), alpha=0.5, history="cumulative")
        for g in (*self.steps, [5.0, 8.0]):
            observe(repa, [torch.tensor([g])], [torch.zeros(1, 2)])
        assert repa.state_dict()["mean"][0][0].tolist() == [[2.75, 5.75]]
        assert float(repa.state_dict()["sensitivity"][0, 0]) == 0.5 * 2.5 + 0.5 * 9

    @pytest.mark.parametrize(("history", "w"), [("ema", 1 - 0.95), ("cumulative", 1 / 2)])
    def test_the_step_size_is_a_float64(
        self, history: str, w: float, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen = []

        class Watching(Reference):
            name = "watching"

            def observe_(self, bucket: Bucket, weights: Any, history: History | None) -> RowSums:
                assert history is not None
                seen.append(history.step_size)
                return super().observe_(bucket, weights, history)

        monkeypatch.setattr(registry, "BACKENDS", (Watching(),))
        repa = Repa(*weights((1, 2), (1, 2)), history=history)  # type: ignore[arg-type]
        zero = torch.zeros(1, 2)
        observe(repa, [zero, None], [zero, None])
        observe(repa, [zero, zero], [zero, zero])
        assert seen[1].dtype == torch.float64
        assert seen[1].tolist() == [[w, 1.0], [w, 1.0]]

    def test_bfloat16_history(self) -> None:
        assert self.sensitivities(history_dtype=torch.bfloat16) == [0.0, 5.0, 2.5]

    def test_a_pair_that_first_appears_later_has_its_own_first_step(self) -> None:
        repa = Repa(*weights((1, 2), (1, 2)), alpha=0.5)
        zero, one = torch.zeros(1, 2), torch.ones(1, 2)
        observe(repa, [one, None], [zero, zero])
        observe(repa, [one, 5 * one], [zero, zero])
        observe(repa, [one, 7 * one], [zero, zero])
        state = repa.state_dict()
        assert state["steps"].tolist() == [[3.0, 2.0], [3.0, 2.0]]
        assert state["sensitivity"].tolist() == [[0.0, 0.5 * 4.0], [0.0, 0.0]]
        assert state["mean"][0][1].tolist() == [[6.0, 6.0]]

    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    def test_elements_that_are_not_finite_enter_nothing(self, bad: float) -> None:
        repa = Repa(*weights((2, 2)), alpha=0.5)
        g = torch.ones(2, 2)
        observe(repa, [g], [g * 2])
        poisoned = torch.tensor([[3.0, bad], [5.0, 7.0]])
        r = observe(repa, [poisoned], [g * 2])
        state = repa.state_dict()
        assert r[0, 0] == 0.25  # 1/2 in both factors
        # mu moves by half of d = 2, 4 and 6, and stays where g is not finite
        assert state["mean"][0][0].tolist() == [[2.0, 1.0], [3.0, 4.0]]
        # the poisoned row was not observed; the other rgb row deviates by 4 and 6
        assert state["steps"].tolist() == [[1.0, 2.0], [2.0, 2.0]]
        assert state["sensitivity"].tolist() == [[0.0, 0.5 * (16 + 36) / 2], [0.0, 0.0]]

    def test_a_row_poisoned_on_its_first_step_starts_over(self) -> None:
        repa = Repa(*weights((1, 2)), alpha=0.5)
        zero = torch.zeros(1, 2)
        observe(repa, [torch.tensor([[math.nan, 1.0]])], [zero])
        observe(repa, [torch.tensor([[4.0, 6.0]])], [zero])
        state = repa.state_dict()
        assert state["mean"][0][0].tolist() == [[4.0, 6.0]]
        assert state["sensitivity"][0].tolist() == [0.0]


class TestReliability:
    theta = ([torch.tensor([[1.0, 2.0], [3.0, 0.0]])], [torch.tensor([[2.0, 2.0], [1.0, 1.0]])])
    g = ([torch.tensor([[2.0, -1.0], [-1.0, 5.0]])], [torch.tensor([[0.0, -1.0], [1.0, -4.0]])])
    # -g.theta: rgb (0, 3), ir (2, 3): mean 2, population variance (4 + 1 + 0 + 1) / 4 = 1.5
    e_hat = torch.sigmoid((torch.tensor([[0.0, 3.0], [2.0, 3.0]]) - 2) / 1.5**0.5)

    def test_eq2_to_eq5_on_the_first_step(self) -> None:
        """No history yet: every S is 0 and S^ is one half."""
        r = observe(Repa(*self.theta, effectiveness=FirstOrder()), *self.g)
        assert torch.allclose(r, self.e_hat * 0.5, rtol=1e-6)

    def test_effectiveness_alone(self) -> None:
        r = observe(Repa(*self.theta, factors="effectiveness"), *self.g)
        assert torch.allclose(r, self.e_hat, rtol=1e-6)

    def test_the_old_name_of_factors_still_works(self) -> None:
        with pytest.warns(DeprecationWarning, match="reliability= is now called factors="):
            old = Repa(*self.theta, reliability="effectiveness")
        assert old.factors == "effectiveness"

    def test_sensitivity_alone(self) -> None:
        repa = Repa(*self.theta, factors="sensitivity", alpha=0.5)
        assert observe(repa, *self.g).tolist() == [[0.5, 0.5], [0.5, 0.5]]
        # then d^2 = 1, 4 for rgb and 0, 0 for ir; S = 0.5, 2, 0, 0: mean 0.625
        moved = [self.g[0][0] + torch.tensor([[1.0], [2.0]])]
        s = torch.tensor([[0.5, 2.0], [0.0, 0.0]])
        expected = torch.sigmoid((s - 0.625) / s.std(correction=0))
        assert torch.allclose(observe(repa, moved, self.g[1]), expected, rtol=1e-6)

    def test_both_is_the_product(self) -> None:
        """Eq. 5."""
        parts = {}
        for kind in ("both", "effectiveness", "sensitivity"):
            repa = Repa(*self.theta, factors=kind)  # type: ignore[arg-type]
            observe(repa, *self.g)
            parts[kind] = observe(repa, [2 * self.g[0][0]], self.g[1])
        product = parts["effectiveness"] * parts["sensitivity"]
        assert torch.allclose(parts["both"], product, rtol=1e-6)

    def test_sensitivity_alone_never_asks_for_a_loss(self) -> None:
        repa = Repa(*self.theta, factors="sensitivity", effectiveness=Hutchinson())
        observe(repa, *self.g)

    def test_effectiveness_alone_keeps_no_history(self) -> None:
        repa = Repa(*self.theta, factors="effectiveness")
        observe(repa, *self.g)
        assert repa.state_dict()["mean"] is None

    def test_the_channel_axis_of_a_transposed_convolution(self) -> None:
        """Axis 1: the same numbers as the transposed problem."""
        turned = [[x[0].T.contiguous()] for x in self.theta]
        repa = Repa(*turned, channel_axes=[1], effectiveness=FirstOrder())
        r = observe(repa, [self.g[0][0].T.contiguous()], [self.g[1][0].T.contiguous()])
        assert torch.allclose(r, self.e_hat * 0.5, rtol=1e-6)

    def test_skipped_pairs_get_one_half_of_each_factor(self) -> None:
        repa = Repa(*(2 * t for t in self.theta), effectiveness=FirstOrder())
        r = observe(repa, [self.g[0][0], None], [self.g[1][0], self.g[1][0]])
        assert torch.allclose(r[:, :2], self.e_hat * 0.5, rtol=1e-6)
        assert r[:, 2:].tolist() == [[0.25, 0.25], [0.25, 0.25]]


def test_one_call_observes_then_corrects_by_what_it_observed() -> None:
    from ragrad_ext import Reliability

    rgb, ir = cases.twins(32, 9)
    theta = weights((32, 9))
    measured, given = ([rgb[0].clone()], [ir[0].clone()]), ([rgb[0].clone()], [ir[0].clone()])
    repa = Repa(*theta)
    record = correct_(*measured, repa)
    assert repa.reliability is not None
    again = correct_(*given, Reliability([repa.reliability.rgb], [repa.reliability.ir]))
    assert record.count() > 0
    assert torch.equal(record.mask, again.mask)
    assert torch.equal(measured[0][0], given[0][0])
    assert torch.equal(measured[1][0], given[1][0])


@pytest.mark.parametrize("history", ["ema", "cumulative"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("estimator", [Gate, lambda: Fisher(every=2, average=0.5)])
def test_a_resumed_run_continues_bit_for_bit(history: str, dtype: torch.dtype, estimator) -> None:  # type: ignore[no-untyped-def]
    theta = weights((8, 3, 3), (5, 2))

    def fresh() -> Repa:
        return Repa(*theta, history=history, history_dtype=dtype, effectiveness=estimator())  # type: ignore[arg-type]

    def step(repa: Repa, t: int) -> Tensor:
        rgb, ir = (
            [torch.randn(w.shape, generator=cases.rng(10 * t + m)) for w in theta[m]]
            for m in (0, 1)
        )
        return observe(repa, rgb, ir)

    whole = fresh()
    straight = [step(whole, t) for t in range(6)]
    first, second = fresh(), fresh()
    for t in range(3):
        step(first, t)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second.load_state_dict(torch.load(file, weights_only=True))
    for t in range(3, 6):
        assert torch.equal(step(second, t), straight[t])


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"alpha": 0.9}, r"alpha=0.9, the saved one had 0.95"),
        ({"history": "cumulative"}, "history='cumulative', the saved one had 'ema'"),
        ({"history_dtype": torch.bfloat16}, "history_dtype='torch.bfloat16'"),
        ({"effectiveness": Fisher()}, "effectiveness='Fisher', the saved one had 'Gate'"),
    ],
)
def test_a_state_of_other_options_is_refused(change: dict, match: str) -> None:
    saved = Repa(*weights((3, 2))).state_dict()
    with pytest.raises(ValueError, match=match):
        Repa(*weights((3, 2)), **change).load_state_dict(saved)


def test_a_state_of_other_weights_is_refused() -> None:
    saved = Repa(*weights((3, 2))).state_dict()
    with pytest.raises(ValueError, match=r"shapes=\[\[4, 2\]\], the saved one had \[\[3, 2\]\]"):
        Repa(*weights((4, 2))).load_state_dict(saved)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"alpha": 1.0}, r"alpha=1.0; the decay of Eq. 4 must be in \[0, 1\)"),
        ({"alpha": math.nan}, "alpha=nan"),
        ({"factors": "all"}, "factors='all' is unknown; choose one of"),
        ({"scope": "row"}, "scope='row' is unknown"),
        ({"history": "none"}, "history='none' is unknown"),
        ({"history_dtype": torch.float16}, "history_dtype=torch.float16 is unknown"),
        ({"channel_axes": [0, 1]}, "1 rgb weights, 1 ir weights and 2 channel axes"),
        ({"channel_axes": [2]}, "channel axis 2 of pair 0 does not exist"),
    ],
)
def test_bad_options_are_named(options: dict, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Repa(*weights((3, 2)), **options)


def test_bad_weights_are_named() -> None:
    rgb, _ = weights((3, 2))
    with pytest.raises(ValueError, match=r"weights_rgb\[0\] has shape \(3, 2\)"):
        Repa(rgb, [torch.zeros(3, 4)])
    with pytest.raises(ValueError, match="one tensor on both sides"):
        Repa(rgb, rgb)
    with pytest.raises(ValueError, match="1 rgb weights, 0 ir weights"):
        Repa(rgb, [])


def test_weights_may_move_after_pairing() -> None:
    """Statistics bind to Parameter objects, which `.half().float()` keeps."""
    layer, twin = nn.Linear(3, 2), nn.Linear(3, 2)
    repa = Repa([layer.weight], [twin.weight], effectiveness=FirstOrder())
    layer.half().float()
    assert repa.twins.weights[0][0] is layer.weight
