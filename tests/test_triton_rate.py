"""Eq. 3-5 in the Triton backend: one launch that agrees with the reference."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
import torch
from torch import Tensor

from ragrad_ext import Repa, correct_
from ragrad_ext.backends import RowSums, Sensitivity, triton_launch, triton_rating
from ragrad_ext.backends.reference import Reference
from ragrad_ext.backends.triton import Triton
from ragrad_ext.backends.triton_tuning import Tuning
from ragrad_ext.bucket import Bucket, Buckets, Layout

from . import cases
from .interleave import Schedule, interleaved
from .interpreted import interpreted

pytest.importorskip("triton")


@pytest.fixture(scope="module", autouse=True)
def _interpreter() -> Iterator[None]:
    with interpreted():
        yield


@pytest.fixture(autouse=True)
def _small_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups of many units, for three blocks."""
    monkeypatch.setattr(triton_rating, "VALUES", 16)
    monkeypatch.setattr(triton_launch, "device_of", lambda device: (Tuning(), 3))


GROUPS = [(90,), (1, 40, 0, 7, 42), (3,) * 30]


def empty_bucket(rows: int) -> Bucket:
    return Buckets(Layout.of([rows]), [0]).bucket([None], [None], torch.device("cpu"))


def inputs(seed: int, rows: int = 90, scale: float = 1.0) -> tuple[RowSums, Tensor, Sensitivity]:
    """Some rows not observed, some for the first time, some effects unknown."""
    g = cases.rng(seed)

    def draw() -> Tensor:
        return scale * torch.randn(2, rows, generator=g, dtype=torch.float64)

    observed = torch.rand(2, rows, generator=g) > 0.1
    sums = RowSums(draw(), draw().square(), observed)
    effect = draw()
    effect[0, 1], effect[1, 2], effect[1, 3] = torch.nan, torch.inf, -torch.inf
    steps = torch.randint(0, 3, (2, rows), generator=g).double()
    return sums, effect, Sensitivity(draw().square(), steps, 0.9)


def rated(
    backend: Reference | Triton,
    bucket: Bucket,
    given: tuple[RowSums, Tensor, Sensitivity],
    groups: Sequence[int],
    kind: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """R, S and the steps, from copies of what is given."""
    sums, effect, before = given
    state = Sensitivity(before.score.clone(), before.steps.clone(), before.alpha)
    r = backend.rate_(
        bucket, sums, None if kind == "sensitivity" else effect, state, groups,
        by_sensitivity=kind != "effectiveness",
    )  # fmt: skip
    return r, state.score, state.steps


@pytest.mark.parametrize("kind", ["both", "effectiveness", "sensitivity"])
@pytest.mark.parametrize("groups", GROUPS, ids=len)
def test_it_agrees_with_the_reference(groups: tuple[int, ...], kind: str) -> None:
    bucket = empty_bucket(90)  # one workspace: every launch leaves it ready
    for seed in range(2):
        given = inputs(seed)
        r, score, steps = rated(Triton(), bucket, given, groups, kind)
        expected = rated(Reference(), bucket, given, groups, kind)
        torch.testing.assert_close(r, expected[0], rtol=2**-22, atol=0)
        torch.testing.assert_close(score, expected[1], rtol=2**-50, atol=0)
        assert torch.equal(steps, expected[2])
        assert r.dtype == torch.float32
        assert ((r > 0) & (r < 1)).all()


@pytest.mark.parametrize("scale", [1e-60, 1e60])
def test_scale_does_not_matter(scale: float) -> None:
    bucket = empty_bucket(90)
    a = rated(Triton(), bucket, inputs(1), (90,), "effectiveness")[0]
    b = rated(Triton(), bucket, inputs(1, scale=scale), (90,), "effectiveness")[0]
    torch.testing.assert_close(a, b, rtol=2**-22, atol=0)


def test_by_hand() -> None:
    """Two rows a side: E = 1, 3, 1, 3 has mean 2 and std 1; the first step has S = 0."""
    effect = torch.tensor([[1.0, 3.0], [1.0, 3.0]], dtype=torch.float64)
    zero = torch.zeros(2, 2, dtype=torch.float64)
    sums = RowSums(zero, zero + 5, torch.ones(2, 2, dtype=torch.bool))
    state = Sensitivity(zero.clone(), zero.clone(), 0.9)
    bucket = empty_bucket(2)
    r = Triton().rate_(bucket, sums, effect, state, (2,), by_sensitivity=True)
    low, high = 0.5 * torch.tensor([-1.0, 1.0]).sigmoid()
    torch.testing.assert_close(r, torch.stack([low, high]).expand(2, 2))
    assert (state.score == 0).all()  # no history, no deviation
    assert (state.steps == 1).all()
    Triton().rate_(bucket, sums, effect, state, (2,), by_sensitivity=True)
    torch.testing.assert_close(state.score, zero + 0.5)  # (1 - 0.9) 5


def test_values_without_spread_and_values_that_nobody_knows_get_one_half() -> None:
    zero = torch.zeros(2, 40, dtype=torch.float64)
    state = Sensitivity(zero.clone(), zero.clone(), 0.9)
    noise = torch.randn(2, 40, generator=cases.rng(1), dtype=torch.float64)
    alike = 7 + 1e-9 * noise  # below the rounding of float32
    for effect, observed in ((alike, True), (7 + noise, False), (zero * torch.nan, True)):
        sums = RowSums(zero, zero, torch.full((2, 40), observed))
        r = Triton().rate_(
            empty_bucket(40), sums, effect, state, (40,), by_sensitivity=False
        )  # fmt: skip
        assert (r == 0.5).all()


@pytest.mark.parametrize("resident", [3, pytest.param(7, marks=pytest.mark.slow)])
def test_the_same_bits_whatever_the_order_of_blocks(
    resident: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton_launch, "device_of", lambda device: (Tuning(), 4))
    bucket, given, groups = empty_bucket(90), inputs(5), (60, 30)
    first = rated(Triton(), bucket, given, groups, "both")
    for seed in range(4):
        with interleaved(Schedule(resident, seed)):
            again = rated(Triton(), bucket, given, groups, "both")
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("scope", ["model", pytest.param("layer", marks=pytest.mark.slow)])
def test_whole_steps_agree(scope: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Repa and correction together, several steps, one backend against the other."""
    from ragrad_ext import backends

    class Anywhere(Triton):
        def unusable(self, device: torch.device) -> None:
            return None

    monkeypatch.setattr(backends, "BACKENDS", (Anywhere(), Reference()))
    results = []
    for name in ("triton", "reference"):
        weights = [cases.twins(12, 30, seed=l) for l in range(3)]
        repa = Repa(*([w[m][0] for w in weights] for m in (0, 1)), scope=scope)  # type: ignore[arg-type]
        for step in range(3):
            pairs = [cases.twins(12, 30, seed=10 * step + l, agreement=-0.5) for l in range(3)]
            rgb, ir = ([p[m][0] for p in pairs] for m in (0, 1))
            record = correct_(rgb, ir, repa, backend=name)
        assert repa.reliability is not None
        results.append([repa.reliability.values, record.mask, *rgb, *ir])
    assert results[0][1].any()
    assert torch.equal(results[0][1], results[1][1])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
