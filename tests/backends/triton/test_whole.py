"""Whole steps with `Repa` in the Triton backend: two launches, which agree with the reference."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from torch import Tensor

from ragrad_ext import FirstOrder, Repa, correct_
from ragrad_ext.rows.conflicts import Conflicts

from ...lib import cases
from ...lib.parity import bits
from ...lib.tolerances import STAGE
from ...lib.triton_cases import SLOW, SMALL, Counting, tolerance, tune

pytest.importorskip("triton")
pytestmark = pytest.mark.interpreted
Side = list[Tensor | None]


@pytest.fixture(autouse=True)
def _small_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """Units small enough that there are several of every kind."""
    from ragrad_ext.backends.triton import rate_and_apply

    monkeypatch.setattr(rate_and_apply, "VALUES", 16)
    tune(monkeypatch, SMALL)


LAYERS: list[tuple[int, int, torch.dtype]] = [
    (12, 30, torch.float32),
    (9, 8, torch.bfloat16),
    (7, 40, torch.float32),  # its channels are innermost
    (10, 12, torch.float32),
    (5, 16, torch.float16),
]
INNERMOST = 2


def sides(seed: int) -> tuple[list[Tensor], list[Tensor]]:
    pairs = [cases.twins(c, n, seed=seed + l, agreement=-0.5) for l, (c, n, _) in enumerate(LAYERS)]
    rgb, ir = (
        [cases.cast(p[m][0], dtype) for p, (_, _, dtype) in zip(pairs, LAYERS, strict=True)]
        for m in (0, 1)
    )
    for side in (rgb, ir):
        side[INNERMOST] = cases.transposed(side[INNERMOST])
    return rgb, ir


# Which steps are out of the ordinary; the first and the last have every pair, all finite.
SOME_PAIRS, NO_PAIR, STEPS = 1, 2, 4


def gradients(step: int) -> tuple[Side, Side]:
    rgb: Side
    ir: Side
    rgb, ir = ([*side] for side in sides(100 * (step + 1)))
    if step == SOME_PAIRS:
        rgb[1] = ir[3] = None
        for g, element, bad in ((rgb[0], (4, 2), torch.inf), (ir[2], (1, 5), torch.nan)):
            assert g is not None
            g[element] = bad
    if step == NO_PAIR:
        return [None] * len(rgb), ir
    return rgb, ir


def compare_steps(steps: int = STEPS, **options: Any) -> int:
    """Runs both backends side by side; how many conflicts there were."""
    repas = {
        name: Repa(*sides(0), effectiveness=FirstOrder(), **options)
        for name in ("triton", "reference")
    }
    conflicts = 0
    for step in range(steps):
        outcomes = {}
        for name, repa in repas.items():
            grads = gradients(step)
            outcomes[name] = grads, correct_(*grads, repa, backend=name)
        compare_outcomes(gradients(step), outcomes["triton"], outcomes["reference"])
        compare_states(repas["triton"], repas["reference"])
        conflicts += outcomes["triton"][1].count()
    return conflicts


def compare_outcomes(
    old: tuple[Side, Side],
    mine: tuple[tuple[Side, Side], Conflicts],
    true: tuple[tuple[Side, Side], Conflicts],
) -> None:
    a, b = mine[1], true[1]
    assert torch.equal(a.mask, b.mask)
    torch.testing.assert_close(a.cosine, b.cosine, rtol=0, atol=STAGE, equal_nan=True)
    torch.testing.assert_close(a.gap, b.gap, rtol=0, atol=2 * STAGE)
    torch.testing.assert_close(a.strength, b.strength, rtol=1e-6, atol=0)
    for before, x, y in zip(*([*rgb, *ir] for rgb, ir in (old, mine[0], true[0])), strict=True):
        if before is None or x is None or y is None:
            continue
        same = before.eq(y) | before.isnan()
        assert torch.equal(bits(x)[same], bits(before)[same])
        error = torch.where(same, 0.0, x.double() - y.double()).norm()
        assert error <= tolerance()[x.dtype] * y.double().nan_to_num(0, 0, 0).norm()


def compare_states(mine: Repa, true: Repa) -> None:
    assert mine.reliability is not None
    assert true.reliability is not None
    torch.testing.assert_close(mine.reliability.values, true.reliability.values, rtol=1e-6, atol=0)
    a, b = mine.state_dict(), true.state_dict()
    assert torch.equal(a["steps"], b["steps"])
    torch.testing.assert_close(a["sensitivity"], b["sensitivity"], rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("scope", "factors"),
    [
        ("model", "both"),
        *[
            pytest.param(scope, kind, marks=SLOW)
            for scope in ("model", "layer")
            for kind in ("both", "effectiveness", "sensitivity")
            if (scope, kind) != ("model", "both")
        ],
    ],
)
def test_steps_agree(scope: str, factors: str) -> None:
    assert compare_steps(scope=scope, factors=factors) > 10


@SLOW
@pytest.mark.parametrize("history", ["ema", "cumulative"])
@pytest.mark.parametrize("history_dtype", [torch.float32, torch.bfloat16])
def test_steps_agree_for_every_history(history: str, history_dtype: torch.dtype) -> None:
    if history_dtype == torch.bfloat16:
        from ...lib.interpreter import require_rounding

        require_rounding()  # a mean that is cut off is another one, and more so at every step
    assert compare_steps(3, history=history, history_dtype=history_dtype, alpha=0.5) > 5


@pytest.mark.parametrize("pairs", [0, 2])
def test_a_model_without_rows(pairs: int) -> None:
    def none() -> list[Tensor]:
        return [torch.empty(0, 3) for _ in range(pairs)]

    for scope in ("model", "layer"):
        repa = Repa(none(), none(), scope=scope)  # type: ignore[arg-type]
        assert correct_(none(), none(), repa, backend="triton").count() == 0
        assert repa.reliability is not None
        assert repa.reliability.values.shape == (2, 0)


def test_autograd_sees_the_change() -> None:
    rgb, ir = sides(1)
    before = rgb[0]._version
    correct_(rgb, ir, Repa(*sides(0)), backend="triton")
    assert rgb[0]._version > before


class TestLaunches:
    @pytest.fixture(autouse=True)
    def _launches(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.kernels = {}
        for name in ("observe", "decide_and_apply", "rate_and_apply", "apply", "point"):
            module = importlib.import_module(f"ragrad_ext.backends.triton.{name}")
            self.kernels[name] = Counting(getattr(module, name))
            monkeypatch.setattr(module, name, self.kernels[name])

    def counted(self) -> dict[str, int]:
        """Launches since the last call, of the kernels that had any."""
        counts = {name: len(kernel.grids) for name, kernel in self.kernels.items()}
        for kernel in self.kernels.values():
            kernel.grids.clear()
        return {name: n for name, n in counts.items() if n}

    def test_another_rule_takes_two_as_well(self) -> None:
        rgb, ir = cases.twins(8, 30)
        correct_(rgb, ir, rule="pcgrad", backend="triton")
        assert self.counted() == {"observe": 1, "apply": 1, "point": 2}

    @pytest.mark.parametrize("scope", ["model", "layer"])
    def test_a_step_is_two(self, scope: Any) -> None:
        pairs = [cases.twins(8, n, seed=n, agreement=-0.5) for n in (5, 9, 30)]
        rgb, ir = ([p[m][0] for p in pairs] for m in (0, 1))
        repa = Repa([x.clone() for x in ir], [x.clone() for x in rgb], scope=scope)
        correct_(rgb, ir, repa, backend="triton")
        assert self.counted() == {"observe": 1, "rate_and_apply": 1, "point": 2}
        correct_(rgb, ir, repa, backend="triton")
        assert self.counted() == {"observe": 1, "rate_and_apply": 1}

    def test_every_dtype_and_rows_that_are_no_runs_take_two_of_their_own(self) -> None:
        repa = Repa(*sides(0))
        grads = gradients(0)
        for _ in range(2):
            correct_(*grads, repa, backend="triton")
            launches = self.counted()
            launches.pop("point", None)
            assert launches == {"observe": 4, "rate_and_apply": 4}

    def test_where_every_pair_is_skipped_there_is_none(self) -> None:
        repa = Repa(*sides(0))
        correct_(*gradients(NO_PAIR), repa, backend="triton")
        assert self.counted() == {}
        assert repa.reliability is not None
        assert (repa.reliability.values == 0.25).all()
