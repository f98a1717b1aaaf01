"""Decide and apply in the Triton backend: as the reference, stage by stage, in the interpreter."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ragrad_ext.backends.reference import Reference
from ragrad_ext.backends.triton import plan
from ragrad_ext.backends.triton.backend import Triton
from ragrad_ext.backends.triton.tuning import Tuning
from ragrad_ext.rows.bucket import Buckets
from ragrad_ext.rows.layout import Layout
from ragrad_ext.rules import RaGradRule
from ragrad_ext.rules.ragrad import Identify, Resolve

from ...lib import cases
from ...lib.parity import bucket_of, clone, compare_observation, corrected, observed
from ...lib.triton_cases import CPU, DTYPES, SLOW, SMALL, USUAL, compare, found, layers, tune

pytest.importorskip("triton")
pytestmark = pytest.mark.interpreted


@pytest.mark.parametrize(
    ("dtype", "how"),
    [
        (torch.float32, SMALL),
        (torch.bfloat16, USUAL),
        pytest.param(torch.float32, USUAL, marks=SLOW),
        pytest.param(torch.float16, USUAL, marks=SLOW),
    ],
)
@pytest.mark.parametrize("name", cases.AWKWARD)
def test_correction_agrees_on_awkward_inputs(
    name: str, dtype: torch.dtype, how: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tune(monkeypatch, how)
    rgb, ir = ([cases.cast(x, dtype) for x in side] for side in cases.AWKWARD[name])
    compare(Triton(), rgb, ir)


@pytest.mark.parametrize(
    ("identify", "resolve", "eps"),
    [*product(["dual", "cosine"], ["blend", "project"], [1e-30]), ("dual", "blend", 0.5)],
)
def test_correction_agrees_under_every_option(
    identify: Identify, resolve: Resolve, eps: float
) -> None:
    rgb, ir = cases.AWKWARD["several layers"]
    compare(Triton(), rgb, ir, rule=RaGradRule(identify, resolve, eps))


@pytest.mark.slow
@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    shapes=st.lists(
        st.tuples(st.integers(1, 40), st.integers(1, 70), st.floats(-1, 1)), min_size=1, max_size=4
    ),
    dtype=st.sampled_from(DTYPES),
    scale=st.sampled_from([1e-20, 1e-4, 1.0, 1e4]),
    seed=st.integers(0, 1000),
    limits=st.builds(
        plan.Limits,
        st.sampled_from([2048, 8192]),
        st.sampled_from([512, 2048, 32768]),
        st.sampled_from([2, 9, 4096]),
        st.integers(1, 8),
    ),
    blocks=st.integers(1, 9),
)
def test_correction_agrees_on_random_layers(
    shapes: list[tuple[int, int, float]],
    dtype: torch.dtype,
    scale: float,
    seed: int,
    limits: plan.Limits,
    blocks: int,
) -> None:
    rgb, ir = [], []
    for c, n, agreement in shapes:
        a, b = cases.twins(c, n, seed=seed, scale=scale, agreement=agreement)
        rgb += [x.to(dtype) for x in a]
        ir += [x.to(dtype) for x in b]
    with pytest.MonkeyPatch.context() as patch:
        tune(patch, (Tuning(limits, correct_blocks=1), blocks))
        compare(Triton(), rgb, ir, seed)


@pytest.mark.parametrize("identify", ["dual", "cosine"])
def test_ties(identify: Identify) -> None:
    """Equal gaps do not exceed their mean; of equal reliabilities rgb's is the reliable side."""
    rgb, ir = cases.twins(16, 9, agreement=-0.7)
    for r in (torch.full((2, 16), 0.3), torch.tensor([0.25, 0.75])[:, None].expand(2, 16)):
        given = rgb, ir, r.contiguous(), RaGradRule(identify)
        mine, true = (corrected(b, *given) for b in (Triton(), Reference()))
        assert torch.equal(mine[2].mask, true[2].mask)
        assert mine[2].count() == (0 if identify == "dual" else int((true[2].cosine < 0).sum()))
        torch.testing.assert_close(mine[:2], true[:2])


@pytest.mark.slow
def test_at_most_one_row_in_a_thousand_is_inside_the_margin() -> None:
    counts = [compare(Triton(), *cases.twins(200, 18, seed=seed), seed) for seed in range(10)]
    rows, close = (sum(column) for column in zip(*counts, strict=True))
    assert rows == 2000
    assert close <= rows / 1000


@pytest.mark.slow
@pytest.mark.parametrize(
    "shape", [(3, 9000), (40, 900), pytest.param((2, 70000), marks=SLOW), (700, 3)]
)
def test_rows_of_every_length(shape: tuple[int, int]) -> None:
    """In one piece, in a few, in many; more channels than are decided at a time."""
    rgb, ir = cases.twins(*shape, seed=3, agreement=-0.9)
    compare(Triton(), rgb, ir, seed=3)
    compare(Triton(), rgb, ir, seed=3, rule=RaGradRule("cosine"))  # nearly all rows
    theta, mean = cases.twins(*shape, seed=5), cases.twins(*shape, seed=6)
    compare_observation(Triton(), rgb, ir, theta, mean, 0.1)


@pytest.mark.parametrize("how", [USUAL, SMALL])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", DTYPES)
def test_non_finite_elements(
    dtype: torch.dtype, bad: float, how: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tune(monkeypatch, how)
    rgb, ir = ([x.to(dtype) for x in side] for side in cases.twins(5, 37))
    rgb[0][2, 36] = bad
    compare(Triton(), rgb, ir)
    compare(Triton(), rgb, ir, rule=RaGradRule("cosine"))
    mean = cases.twins(5, 37, seed=4)
    before = clone(mean[0])
    sums = observed(Triton(), rgb, ir, (clone(ir), clone(rgb)), mean, 0.5)
    assert sums.observed.tolist() == [[True, True, False, True, True], [True] * 5]
    assert sums.g_theta[0, 2] == sums.deviation[0, 2] == 0
    assert mean[0][0][2, 36] == before[0][2, 36]
    assert mean[0][0].isfinite().all()
    assert (mean[0][0][2, :36] != before[0][2, :36]).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_written_saturates(dtype: torch.dtype) -> None:
    """A projection of rows near the end of the range goes beyond it, and stays finite."""
    largest = torch.finfo(dtype).max
    weak, strong = torch.full((1, 8), largest, dtype=dtype), torch.ones(1, 8, dtype=dtype)
    strong[0, 0] = -9  # the projection adds a 44th to all other elements
    given = [weak], [strong], torch.tensor([[0.25], [0.75]]), RaGradRule("cosine", "project")
    new, _, record = corrected(Triton(), *given)
    true, _, _ = corrected(Reference(), *given)
    assert record.mask.tolist() == [True]
    assert (new[0][0, 1:] == largest).all()
    torch.testing.assert_close(new, true)


def test_the_channel_axis_may_be_any() -> None:
    """A transposed convolution: the rows of (C_in, C, k, k) along axis 1."""
    (rgb,), (ir,) = cases.twins(6, 9, 2, 2)
    r = torch.rand(2, 9, generator=cases.rng(8))
    along_1 = [rgb.clone()], [ir.clone()]
    record = Triton().decide_and_apply_(bucket_of(*along_1, (1,)), r, RaGradRule())
    along_0 = [rgb.movedim(1, 0).contiguous()], [ir.movedim(1, 0).contiguous()]
    same = Triton().decide_and_apply_(bucket_of(*along_0), r, RaGradRule())
    assert torch.equal(record.mask, same.mask)
    assert record.count() > 0
    for a, b in zip(along_1, along_0, strict=True):
        torch.testing.assert_close(a[0].movedim(1, 0), b[0], rtol=1e-6, atol=0)


def test_rows_of_many_separate_dimensions() -> None:
    def gaps(x: Tensor) -> Tensor:  # no two dimensions can be merged
        return torch.zeros([n + 1 for n in x.shape])[tuple(slice(n) for n in x.shape)].copy_(x)

    rgb, ir = ([gaps(x) for x in side] for side in cases.twins(5, 2, 3, 2, 2, 2, 3))
    compare(Triton(), rgb, ir)
    rgb, ir = ([gaps(x) for x in side] for side in cases.twins(3, *[2] * 7))
    bucket = Buckets(Layout.of([3]), (0,)).bucket
    with pytest.raises(ValueError, match="separate dimensions"):
        Triton().decide_and_apply_(bucket(rgb, ir, CPU), torch.rand(2, 3), RaGradRule())


@pytest.mark.slow
def test_the_same_bits_whatever_the_number_of_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    rgb, ir = layers((9, 900), (140, 20), (2, 700), (5, 64), (64, 3))
    r = torch.rand(2, 220, generator=cases.rng(3))
    results = []
    for blocks in (1, 20):
        tune(monkeypatch, (SMALL[0], blocks))
        a, b, record = corrected(Triton(), rgb, ir, r, RaGradRule())
        results.append([*a, *b, *found(record)])
        assert record.count() > 0
    for other in results[1:]:
        for x, y in zip(results[0], other, strict=True):
            assert torch.equal(x, y)
