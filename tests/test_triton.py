"""The Triton backend agrees with the reference, stage by stage, in Triton's interpreter."""

from __future__ import annotations

import copy
import gc
import math
import pickle
import sys
import types
import weakref
from collections.abc import Iterator
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ragrad_ext import Reliability, Repa, backends, correct_
from ragrad_ext.backends import History, Unavailable, triton_launch
from ragrad_ext.backends import triton_plan as plan
from ragrad_ext.backends.reference import Reference
from ragrad_ext.backends.triton import Triton
from ragrad_ext.backends.triton_tuning import TABLE, Tuning, tuning
from ragrad_ext.bucket import Buckets, Layout
from ragrad_ext.conflicts import Conflicts
from ragrad_ext.rgcr import Identify, Options, Resolve

from . import cases
from .interpreted import interpreted
from .parity import bits, bucket_of, clone, compare, compare_observation, corrected, observed

pytest.importorskip("triton")
CPU = torch.device("cpu")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
USUAL = Tuning(), 1
# Rows in many pieces, layers in many units, more blocks than one.
SMALL = Tuning(plan.Limits(4096, 2048, 8, 2)), 3


@pytest.fixture(scope="module", autouse=True)
def _interpreter() -> Iterator[None]:
    with interpreted():
        yield


def tune(patch: pytest.MonkeyPatch, how: tuple[Tuning, int]) -> None:
    patch.setattr(triton_launch, "_device", lambda device: how)


def found(record: Conflicts) -> list[Tensor]:
    return [record.cosine, record.gap, record.mask, record.strength]


def layers(*shapes: tuple[int, int], agreement: float = -0.5) -> cases.Pairs:
    pairs = [cases.twins(*s, seed=i, agreement=agreement) for i, s in enumerate(shapes)]
    return [p[0][0] for p in pairs], [p[1][0] for p in pairs]


@pytest.mark.parametrize(("dtype", "how"), [*((d, USUAL) for d in DTYPES), (DTYPES[0], SMALL)])
@pytest.mark.parametrize("name", cases.AWKWARD)
def test_correction_agrees_on_awkward_inputs(
    name: str, dtype: torch.dtype, how: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tune(monkeypatch, how)
    rgb, ir = ([cases.cast(x, dtype) for x in side] for side in cases.AWKWARD[name])
    compare(Triton(two_launches=how is SMALL), rgb, ir)


@pytest.mark.parametrize("two_launches", [False, True])
@pytest.mark.parametrize(
    ("identify", "resolve", "eps"),
    [*product(["dual", "cosine"], ["blend", "project"], [1e-30]), ("dual", "blend", 0.5)],
)
def test_correction_agrees_under_every_option(
    identify: Identify, resolve: Resolve, eps: float, two_launches: bool
) -> None:
    rgb, ir = cases.AWKWARD["several layers"]
    backend = Triton(two_launches=two_launches)
    compare(backend, rgb, ir, options=Options(identify, resolve, eps))


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
        given = rgb, ir, r.contiguous(), Options(identify)
        mine, true = (corrected(b, *given) for b in (Triton(), Reference()))
        assert torch.equal(mine[2].mask, true[2].mask)
        assert mine[2].count() == (0 if identify == "dual" else int((true[2].cosine < 0).sum()))
        torch.testing.assert_close(mine[:2], true[:2])


def test_at_most_one_row_in_a_thousand_lies_inside_the_margin() -> None:
    counts = [compare(Triton(), *cases.twins(200, 18, seed=seed), seed) for seed in range(10)]
    rows, close = (sum(column) for column in zip(*counts, strict=True))
    assert rows == 2000
    assert close <= rows / 1000


@pytest.mark.parametrize("shape", [(3, 9000), (40, 900), (2, 70000), (700, 3)])
def test_rows_of_every_length(shape: tuple[int, int]) -> None:
    """In one piece, in a few, in many; more channels than a layer's stage looks at together."""
    rgb, ir = cases.twins(*shape, seed=3, agreement=-0.9)
    compare(Triton(), rgb, ir, seed=3)
    compare(Triton(), rgb, ir, seed=3, options=Options("cosine"))  # nearly all rows
    theta, mean = cases.twins(*shape, seed=5), cases.twins(*shape, seed=6)
    compare_observation(Triton(), rgb, ir, theta, mean, 0.1)


@pytest.mark.parametrize(
    ("dtype", "history", "how"),
    [
        (torch.float32, None, USUAL),
        (torch.float32, torch.float32, USUAL),
        (torch.float32, torch.float32, SMALL),
        (torch.float32, torch.bfloat16, USUAL),
        (torch.bfloat16, torch.float32, USUAL),
        (torch.bfloat16, torch.bfloat16, SMALL),
        (torch.float16, torch.bfloat16, USUAL),
    ],
)
@pytest.mark.parametrize("name", cases.AWKWARD)
def test_observation_agrees(
    name: str,
    history: torch.dtype | None,
    dtype: torch.dtype,
    how: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tune(monkeypatch, how)
    rgb, ir = ([cases.cast(x, dtype) for x in side] for side in cases.AWKWARD[name])
    theta = clone(ir), clone(rgb)
    mean = None
    if history is not None:
        mean = [0.5 * cases.cast(x, history) for x in ir], [cases.cast(x, history) for x in rgb]
    compare_observation(Triton(), rgb, ir, theta, mean)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
def test_weights_and_history_may_have_types_and_strides_of_their_own(dtype: torch.dtype) -> None:
    rgb, ir = ([x.to(torch.bfloat16) for x in side] for side in cases.twins(9, 4, 4))
    theta, mean = cases.twins(9, 4, 4, seed=1), cases.twins(9, 4, 4, seed=2)
    theta = tuple([cases.transposed(x).to(dtype) for x in side] for side in theta)  # type: ignore[assignment]
    compare_observation(Triton(), rgb, ir, theta, mean)
    theta = tuple([x.contiguous() for x in side] for side in theta)  # type: ignore[assignment]
    compare_observation(Triton(), rgb, ir, theta, mean)


@pytest.mark.parametrize("shape", [(5, 37), (5, 4, 3, 3)])
@pytest.mark.parametrize("absent", [(0,), (1,), (0, 1)])
def test_a_weight_that_is_not_read_counts_as_zero(
    absent: tuple[int, ...], shape: tuple[int, ...]
) -> None:
    rgb, ir = ([cases.transposed(x) for x in side] for side in cases.twins(*shape))
    theta = cases.twins(*shape, seed=1)
    both = observed(Triton(), rgb, ir, theta, None, 1.0)
    some = tuple([None] if m in absent else side for m, side in enumerate(theta))
    sums = observed(Triton(), rgb, ir, some, None, 1.0)  # type: ignore[arg-type]
    for m in (0, 1):
        assert torch.equal(sums.dot[m], both.dot[m] * (m not in absent))
        assert both.dot[m].all()
    assert not sums.deviation.any()


def test_weights_that_do_not_fit_are_refused() -> None:
    rgb, ir = cases.twins(5, 37)
    for theta, match in (
        (([rgb[0][:, 1:]], ir), r"weights_rgb\[0\] has another shape or device"),
        (([rgb[0].double()], ir), r"weights_rgb\[0\] and its twin have different dtypes"),
        (([rgb[0].int()], ir), r"weights_rgb\[0\] has a dtype that the triton backend"),
        (([], ir), r"weights_rgb has 0 entries for 1 pairs"),
    ):
        with pytest.raises(ValueError, match=match):
            observed(Triton(), rgb, ir, theta, None, 1.0)


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
    compare(Triton(), rgb, ir, options=Options("cosine"))
    mean = cases.twins(5, 37, seed=4)
    before = clone(mean[0])
    sums = observed(Triton(), rgb, ir, (clone(ir), clone(rgb)), mean, 0.5)
    assert sums.observed.tolist() == [[True, True, False, True, True], [True] * 5]
    assert sums.dot[0, 2] == sums.deviation[0, 2] == 0
    assert mean[0][0][2, 36] == before[0][2, 36]
    assert mean[0][0].isfinite().all()
    assert (mean[0][0][2, :36] != before[0][2, :36]).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_written_saturates(dtype: torch.dtype) -> None:
    """A projection of rows near the end of the range goes beyond it, and stays finite."""
    largest = torch.finfo(dtype).max
    weak, strong = torch.full((1, 8), largest, dtype=dtype), torch.ones(1, 8, dtype=dtype)
    strong[0, 0] = -9  # the projection adds a 44th to all other elements
    given = [weak], [strong], torch.tensor([[0.25], [0.75]]), Options("cosine", "project")
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
    record = Triton().correct_(bucket_of(*along_1, (1,)), r, Options())
    along_0 = [rgb.movedim(1, 0).contiguous()], [ir.movedim(1, 0).contiguous()]
    same = Triton().correct_(bucket_of(*along_0), r, Options())
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
        Triton().correct_(bucket(rgb, ir, CPU), torch.rand(2, 3), Options())


def test_dots_of_the_observation_spare_the_correction_a_read() -> None:
    rgb, ir = layers((4, 9), (32, 1), (7, 5000))
    r = torch.rand(2, 43, generator=cases.rng(5))
    for two_launches in (False, True):
        a_rgb, a_ir = clone(rgb), clone(ir)
        backend, bucket = Triton(two_launches=two_launches), bucket_of(a_rgb, a_ir)
        dots = backend.observe_(bucket, ([None] * 3, [None] * 3), None).twin_dots
        a = backend.correct_(bucket, r, Options(), dots)
        b_rgb, b_ir, b = corrected(Triton(), rgb, ir, r, Options())
        for x, y in zip([*a_rgb, *a_ir, *found(a)], [*b_rgb, *b_ir, *found(b)], strict=True):
            torch.testing.assert_close(x, y, rtol=1e-6, atol=0)
        assert a.count() > 0
        # and they are believed, not made again
        lying = backend.correct_(bucket, r, Options(), torch.ones(43, 3, dtype=torch.float64))
        assert lying.count() == 0
        assert (lying.cosine == 1).all()


@pytest.mark.parametrize("two_launches", [False, True])
def test_the_same_bits_whatever_the_number_of_blocks(
    two_launches: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    rgb, ir = layers((9, 900), (140, 20), (2, 700), (5, 64), (64, 3))
    r = torch.rand(2, 220, generator=cases.rng(3))
    results = []
    for blocks in (1, 20):
        tune(monkeypatch, (SMALL[0], blocks))
        a, b, record = corrected(Triton(two_launches=two_launches), rgb, ir, r, Options())
        results.append([*a, *b, *found(record)])
        assert record.count() > 0
    for other in results[1:]:
        for x, y in zip(results[0], other, strict=True):
            assert torch.equal(x, y)


class Counting:
    """A kernel that notes its launches."""

    def __init__(self, kernel: Any) -> None:
        self.kernel, self.grids = kernel, list[tuple[int, ...]]()
        self.warmup = kernel.warmup

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        self.grids.append(grid)
        return self.kernel[grid]


class TestFromStepToStep:
    @pytest.fixture(autouse=True)
    def _launches(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from ragrad_ext.backends import triton_correct, triton_rows

        self.correct, self.point = Counting(triton_correct.correct), Counting(triton_rows.point)
        monkeypatch.setattr(triton_correct, "correct", self.correct)
        monkeypatch.setattr(triton_rows, "point", self.point)

    def launches(self) -> tuple[int, int]:
        """Of the correction, and of the pointer table's kernel, since the last call."""
        counts = len(self.correct.grids), len(self.point.grids)
        self.correct.grids.clear()
        self.point.grids.clear()
        return counts

    def test_one_launch_and_the_pointers_only_when_they_moved(self) -> None:
        rgb, ir = layers((4, 8), (9, 9), (3, 300))
        buckets = Buckets(Layout.of([4, 9, 3]), (0, 0, 0))
        r = torch.rand(2, 16, generator=cases.rng(1))

        def step(a: list[Tensor], b: list[Tensor]) -> list[Tensor]:
            for new, old in zip(a + b, rgb + ir, strict=True):
                new.copy_(old)
            record = Triton().correct_(buckets.bucket(a, b, CPU), r, Options())
            return [*a, *b, *found(record)]

        first = clone(rgb), clone(ir)
        kept = [x.clone() for x in step(*first)]
        assert self.launches() == (1, 1)
        again = step(*first)
        assert self.launches() == (1, 0)
        moved = step(clone(rgb), clone(ir))
        assert self.launches() == (1, 1)
        unaligned = [torch.empty(x.numel() + 1)[1:].view(x.shape) for side in first for x in side]
        other = step(unaligned[:3], unaligned[3:])
        assert self.launches() == (1, 1)
        for one, two, three, four in zip(kept, again, moved, other, strict=True):
            assert torch.equal(one, two)
            assert torch.equal(one, three)
            torch.testing.assert_close(one, four, rtol=1e-6, atol=0)

    def test_every_dtype_and_rows_that_are_no_runs_take_a_launch_of_their_own(self) -> None:
        rgb, ir = layers((4, 8), (9, 9), (3, 30), (3, 8))
        rgb, ir = ([s[0], s[1].half(), s[2].bfloat16(), s[3].T] for s in (rgb, ir))
        compare(Triton(), rgb[:3], ir[:3])
        assert self.launches()[0] == 3
        compare(Triton(), rgb[::3], ir[::3])
        assert self.launches()[0] == 2
        compare(Triton(two_launches=True), rgb[:1], ir[:1])
        assert self.launches()[0] == 2

    def test_more_layers_than_addresses_in_a_batch(self) -> None:
        rgb, ir = layers(*[(2, 5)] * 40)
        compare(Triton(), rgb, ir)
        assert self.launches() == (1, 2)

    def test_once_captured_the_pointers_are_written_at_every_step(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Replaying a graph writes its own addresses, behind the back of the host's record."""
        rgb, ir = layers((4, 8))
        buckets = Buckets(Layout.of([4]), (0,))

        def step() -> tuple[int, int]:
            Triton().correct_(buckets.bucket(rgb, ir, CPU), torch.rand(2, 4), Options())
            return self.launches()

        assert [step(), step()] == [(1, 1), (1, 0)]
        work = buckets.bucket(rgb, ir, CPU).memory["triton Correction"]
        work.captured = True
        assert [step(), step()] == [(1, 0), (1, 0)]  # nothing was captured: the record is right
        monkeypatch.setattr(triton_launch, "_capturing", lambda device: True)
        assert [step(), step()] == [(1, 1), (1, 1)]
        monkeypatch.setattr(triton_launch, "_capturing", lambda device: False)
        assert [step(), step()] == [(1, 1), (1, 1)]
        assert buckets.bucket(rgb, ir, CPU).memory["captured"] == [work]


def test_a_skipped_pair_leaves_zeros() -> None:
    rgb, ir = layers((4, 8), (3, 5), (2, 6))
    sides = [rgb[0], None, rgb[2]], [ir[0], ir[1], ir[2]]
    bucket = Buckets(Layout.of([4, 3, 2]), (0,) * 3).bucket(*sides, CPU)
    history = History(tuple([torch.zeros_like(x) for x in rgb] for _ in range(2)), torch.ones(2, 9))  # type: ignore[arg-type]
    sums = Triton().observe_(bucket, (rgb, ir), history._replace(weight=history.weight.double()))
    record = Triton().correct_(bucket, torch.rand(2, 9), Options("cosine"))
    assert record.count() > 0
    for x in [*found(record), *sums.dot, *sums.deviation, *sums.observed, sums.twin_dots]:
        assert x is not None
        assert not x[4:7].any()
    assert sums.observed[:, [0, 8]].all()


def test_no_pairs_at_all() -> None:
    bucket = Buckets(Layout.of([3]), (0,)).bucket([None], [None], CPU)
    record = Triton().correct_(bucket, torch.rand(2, 3), Options())
    assert not record.mask.any()
    assert not Triton().observe_(bucket, ([None], [None]), None).observed.any()


def test_autograd_sees_the_change() -> None:
    rgb, ir = layers((3, 5))
    before = rgb[0]._version
    Triton().correct_(bucket_of(rgb, ir), torch.rand(2, 3), Options())
    assert rgb[0]._version > before


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_what_is_kept_is_neither_copied_nor_holds_gradients(copied: Any) -> None:
    rgb, ir = layers((3, 5))
    buckets = Buckets(Layout.of([3]), (0,))
    Triton().correct_(buckets.bucket(rgb, ir, CPU), torch.rand(2, 3), Options())
    bucket = copied(buckets).bucket(rgb, ir, CPU)
    assert bucket.memory == {}
    assert Triton().correct_(bucket, torch.rand(2, 3), Options()).count() >= 0
    alive = weakref.ref(rgb[0])
    del rgb, bucket
    gc.collect()
    assert alive() is None
    assert buckets.bucket([None], [None], CPU).memory


class Broken:
    def warmup(self, *args: object, **options: object) -> None:
        raise RuntimeError("no such instruction")


class TestKernelsThatDoNotCompile:
    """It is found out before anything is written; "auto" goes on, a named request does not."""

    @pytest.fixture(autouse=True)
    def _broken(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from ragrad_ext.backends import triton_correct

        self.backend = Triton()
        self.backend._known[CPU] = None  # as if the CPU were a GPU
        monkeypatch.setattr(backends, "BACKENDS", (self.backend, *backends.BACKENDS[1:]))
        monkeypatch.setattr(triton_correct, "correct", Broken())
        self.rgb, self.ir = layers((16, 9), (5, 30))
        self.given = Reliability(*([torch.rand(len(x)) for x in self.rgb] for _ in range(2)))

    def test_auto_goes_on_with_a_warning_once(self, recwarn: pytest.WarningsRecorder) -> None:
        mine, true = [[clone(self.rgb), clone(self.ir)] for _ in range(2)]
        with pytest.warns(UserWarning, match="triton.*do not compile here.*no such instruction"):
            record = correct_(*mine, self.given)
        correct_(*true, self.given, backend=backends.select("auto", CPU).name)
        assert record.count() > 0
        for a, b in zip(mine[0] + mine[1], true[0] + true[1], strict=True):
            assert torch.equal(a, b)
        recwarn.clear()
        correct_(*mine, self.given)
        assert not recwarn.list
        assert "no such instruction" in str(self.backend.unusable(CPU))

    def test_a_named_request_fails_and_changes_nothing(self) -> None:
        rgb, ir = clone(self.rgb), clone(self.ir)
        with pytest.raises(Unavailable, match="no such instruction"):
            correct_(rgb, ir, self.given, backend="triton")
        with pytest.raises(RuntimeError, match=r"no usable backend on cpu.*no such instruction"):
            correct_(rgb, ir, self.given, backend="triton")
        for a, b in zip(rgb + ir, self.rgb + self.ir, strict=True):
            assert torch.equal(bits(a), bits(b))

    def test_nothing_is_observed_that_is_not_corrected_then(self) -> None:
        repas = [Repa(clone(self.ir), clone(self.rgb)) for _ in range(2)]
        mine, true = [[clone(self.rgb), clone(self.ir)] for _ in range(2)]
        with pytest.warns(UserWarning, match="going on"):
            correct_(*mine, repas[0])
        correct_(*true, repas[1], backend=backends.select("auto", CPU).name)
        states = [r.state_dict() for r in repas]
        for key in ("steps", "sensitivity", "mean"):
            torch.testing.assert_close(states[0][key], states[1][key], rtol=0, atol=0)
        for a, b in zip(mine[0] + mine[1], true[0] + true[1], strict=True):
            assert torch.equal(a, b)

    def test_compiled_code_goes_on_likewise(self) -> None:
        geometry = [0, 1], [16, 5], [0, 0]
        op = torch.ops.ragrad_ext.correct_
        args = self.given.values, None, "dual", "blend", 1e-30, *geometry
        with pytest.raises(Unavailable, match="no such instruction"):
            op(clone(self.rgb), clone(self.ir), *args, "triton")
        self.backend._known[CPU] = None
        with pytest.warns(UserWarning, match="going on"):
            mask = op(clone(self.rgb), clone(self.ir), *args, "auto")[2]
        assert mask.any()


class TestRefusals:
    def test_the_interpreter_is_nothing_for_users(self) -> None:
        assert Triton().unusable(CPU) == "it needs a CUDA device"
        rgb, ir = layers((3, 5))
        given = Reliability([torch.rand(3)], [torch.rand(3)])
        with pytest.raises(RuntimeError, match='no usable backend on cpu: "triton": it needs a CU'):
            correct_(rgb, ir, given, backend="triton")
        assert backends.select("auto", CPU).name != "triton"

    @pytest.mark.parametrize(
        ("available", "capability", "triton", "why"),
        [
            (False, (9, 0), "3.6.0", "no CUDA device or driver"),
            (True, (7, 5), "3.6.0", "it needs compute capability 8.0, this device has 7.5"),
            (True, (9, 0), None, "triton does not import"),
            (True, (9, 0), "3.5.1", "it needs triton 3.6, found 3.5.1"),
            (True, (9, 0), "3.6.0+git1", None),
            (True, (12, 0), "4.0.0", None),
        ],
    )
    def test_what_is_missing_is_said(
        self,
        monkeypatch: pytest.MonkeyPatch,
        available: bool,
        capability: tuple[int, int],
        triton: str | None,
        why: str | None,
    ) -> None:
        monkeypatch.setattr(torch.version, "cuda", "13.0")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        module = None
        if triton is not None:
            module = types.ModuleType("triton")
            module.__version__ = triton  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "triton", module)
        said = Triton().unusable(torch.device("cuda"))
        assert (said is None) if why is None else why in str(said)
        if available:
            assert "there are 1" in str(Triton().unusable(torch.device("cuda", 1)))
        monkeypatch.setattr(torch.version, "cuda", None)
        assert Triton().unusable(torch.device("cuda")) == "it needs a CUDA device"


class TestTuning:
    def test_an_architecture_that_is_not_listed_has_the_defaults(self) -> None:
        assert tuning((99, 0)) == Tuning()

    @pytest.mark.parametrize("one", [Tuning(), *TABLE.values()])
    def test_every_entry_can_be_used(self, one: Tuning) -> None:
        """Tiles of whole vectors, in every shape and type, for a correction and an observation."""
        for item_bytes, shape in product((2, 4), range(len(plan.ROWS))):
            width = plan.tile_width(shape, item_bytes, one.limits)
            assert width & (width - 1) == 0
            assert width // 2 >= 16 // item_bytes
