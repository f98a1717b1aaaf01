"""The compiled backend agrees with the reference, stage by stage, on every instruction set."""

from __future__ import annotations

import copy
import math
import pickle
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ragrad_ext import Reliability, compiled, correct_
from ragrad_ext.backends.native import Native
from ragrad_ext.rows.conflicts import Conflicts
from ragrad_ext.rules import RaGradRule
from ragrad_ext.rules.ragrad import Identify, Resolve

from ..lib import cases
from ..lib.parity import (
    bits,
    bucket_of,
    clone,
    compare,
    compare_mixing,
    compare_observation,
    corrected,
    matrices,
    mixed,
    observed,
)

if compiled.module is None:
    pytest.skip(f"no native backend: {compiled.missing}", allow_module_level=True)

SETS = compiled.module.instruction_sets()
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", cases.AWKWARD)
def test_correction_agrees_on_awkward_inputs(name: str, dtype: torch.dtype, isa: str) -> None:
    rgb, ir = ([cases.cast(x, dtype) for x in side] for side in cases.AWKWARD[name])
    compare(Native(isa), rgb, ir)


@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize(
    ("identify", "resolve", "eps"),
    [*product(["dual", "cosine"], ["blend", "project"], [1e-30]), ("dual", "blend", 0.5)],
)
def test_correction_agrees_under_every_option(
    identify: Identify, resolve: Resolve, eps: float, isa: str
) -> None:
    rgb, ir = cases.AWKWARD["several layers"]
    compare(Native(isa), rgb, ir, rule=RaGradRule(identify, resolve, eps))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    layers=st.lists(
        st.tuples(st.integers(1, 40), st.integers(1, 70), st.floats(-1, 1)), min_size=1, max_size=4
    ),
    dtype=st.sampled_from(DTYPES),
    scale=st.sampled_from([1e-20, 1e-4, 1.0, 1e4]),
    seed=st.integers(0, 1000),
)
def test_correction_agrees_on_random_layers(
    layers: list[tuple[int, int, float]], dtype: torch.dtype, scale: float, seed: int
) -> None:
    rgb, ir = [], []
    for c, n, agreement in layers:
        a, b = cases.twins(c, n, seed=seed, scale=scale, agreement=agreement)
        rgb += [x.to(dtype) for x in a]
        ir += [x.to(dtype) for x in b]
    for isa in SETS:
        compare(Native(isa), rgb, ir, seed)


def test_at_most_one_row_in_a_thousand_lies_inside_the_margin() -> None:
    counts = [compare(Native(), *cases.twins(64, 18, seed=seed), seed) for seed in range(40)]
    rows, close = (sum(column) for column in zip(*counts, strict=True))
    assert rows == 40 * 64
    assert close <= rows / 1000


class TestOneSetOfBits:
    """Any instruction set, any number of threads, any strides of equal order: the same bits."""

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_of_the_correction(self, dtype: torch.dtype) -> None:
        rgb, ir = ([x.to(dtype) for x in side] for side in cases.twins(64, 2000))
        rgb, ir = rgb * 12, [x.clone() for x in ir * 12]  # enough for more than one thread
        rgb = [x.clone() for x in rgb]
        r = torch.rand(2, 12 * 64, generator=cases.rng(3))
        first = None
        for isa, threads in product(SETS, (1, 2, 3)):
            torch.set_num_threads(threads)
            try:
                new_rgb, new_ir, record = corrected(Native(isa), rgb, ir, r, RaGradRule())
            finally:
                torch.set_num_threads(1)
            found = [*new_rgb, *new_ir, record.cosine, record.gap, record.mask, record.strength]
            first = first or found
            assert all(torch.equal(a, b) for a, b in zip(found, first, strict=True))
        assert record.count() > 0

    def test_of_the_observation(self) -> None:
        (rgb,), (ir,) = cases.twins(40, 900)
        theta = cases.twins(40, 900, seed=1)
        found = []
        for isa in SETS:
            mean = cases.twins(40, 900, seed=2)
            sums = observed(Native(isa), [rgb], [ir], theta, mean, 0.25)
            assert sums.gram is not None
            found.append([*sums, *mean[0], *mean[1]])
        for other in found[1:]:
            assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("history", [None, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", cases.AWKWARD)
def test_observation_agrees(
    name: str, history: torch.dtype | None, dtype: torch.dtype, isa: str
) -> None:
    rgb, ir = ([cases.cast(x, dtype) for x in side] for side in cases.AWKWARD[name])
    theta = clone(ir), clone(rgb)
    mean = None
    if history is not None:
        mean = [0.5 * cases.cast(x, history) for x in ir], [cases.cast(x, history) for x in rgb]
    compare_observation(Native(isa), rgb, ir, theta, mean)


@pytest.mark.parametrize("shape", [(5, 37), (5, 4, 3, 3)])
@pytest.mark.parametrize("absent", [(0,), (1,), (0, 1)])
def test_a_weight_that_is_not_read_counts_as_zero(
    absent: tuple[int, ...], shape: tuple[int, ...]
) -> None:
    rgb, ir = ([cases.transposed(x) for x in side] for side in cases.twins(*shape))
    theta = cases.twins(*shape, seed=1)
    both = observed(Native(), rgb, ir, theta, None, 1.0)
    some = tuple([None] if m in absent else side for m, side in enumerate(theta))
    sums = observed(Native(), rgb, ir, some, None, 1.0)  # type: ignore[arg-type]
    for m in (0, 1):
        assert torch.equal(sums.g_theta[m], both.g_theta[m] * (m not in absent))
        assert both.g_theta[m].all()


def test_weights_that_do_not_fit_are_refused() -> None:
    rgb, ir = cases.twins(5, 37)
    for theta, match in (
        (([rgb[0][:, 1:]], ir), r"weights_rgb\[0\] has another shape or device"),
        (([rgb[0].double()], ir), r"weights_rgb\[0\] and its twin have different dtypes"),
        (([rgb[0].int()], ir), r"weights_rgb\[0\] has a dtype that the native backend"),
        (([], ir), r"weights_rgb has 0 entries for 1 pairs"),
    ):
        with pytest.raises(ValueError, match=match):
            observed(Native(), rgb, ir, theta, None, 1.0)


@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", DTYPES)
def test_non_finite_elements(dtype: torch.dtype, bad: float, isa: str) -> None:
    rgb, ir = ([x.to(dtype) for x in side] for side in cases.twins(5, 37))
    rgb[0][2, 36] = bad
    compare(Native(isa), rgb, ir)
    mean = cases.twins(5, 37, seed=4)
    before = clone(mean[0])
    sums = observed(Native(isa), rgb, ir, (clone(ir), clone(rgb)), mean, 0.5)
    assert sums.observed.tolist() == [[True, True, False, True, True], [True] * 5]
    assert sums.g_theta[0, 2] == sums.deviation[0, 2] == 0
    assert mean[0][0][2, 36] == before[0][2, 36]
    assert mean[0][0].isfinite().all()
    assert (mean[0][0][2, :36] != before[0][2, :36]).all()


@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_sixteen_bit_pattern(dtype: torch.dtype, isa: str) -> None:
    """Read: through g.theta with theta = 1. Written: through mu <- mu + 1 (g - mu), and Eq. 9."""
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    g = bits.view(dtype)
    g = g[g.isfinite()][:, None]
    sums = observed(Native(isa), [g], [g + 0], ([torch.ones_like(g)],) * 2, None, 1.0)
    assert torch.equal(sums.g_theta[0], g[:, 0].double())
    if dtype == torch.bfloat16:
        mean = torch.zeros_like(g)
        observed(Native(isa), [g], [g + 0], ([None], [None]), ([mean], [mean + 0]), 1.0)  # type: ignore[list-item]
        assert torch.equal(mean, g)


@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_written_is_rounded_to_nearest_even(dtype: torch.dtype, isa: str) -> None:
    """Halfway cases, subnormals and the ends of the range, as `Tensor.to` rounds them."""
    tiny = torch.finfo(dtype).smallest_normal
    weak = torch.logspace(-9, 4, 4001, dtype=torch.float64)
    weak = torch.cat([weak, -weak, tiny * torch.linspace(-3, 3, 1001, dtype=torch.float64)])
    weak = weak.to(dtype)[None]
    # orthogonal twins but for one element, so that p and q of Eq. 9 are known exactly
    one = torch.zeros_like(weak)
    one[0, 0] = -1
    weak[0, 0] = 1
    new_rgb, new_ir, record = corrected(
        Native(isa), [weak], [one], torch.tensor([[0.25], [0.75]]), RaGradRule("cosine")
    )
    assert record.mask.tolist() == [True]
    lam = 1 / (1 + math.exp(-0.5))
    exact = (1 - lam) * weak.double() + (lam + (1 - lam)) * one.double()
    assert torch.equal(new_rgb[0][:, 1:], exact.to(dtype)[:, 1:])
    assert torch.equal(new_ir[0], one)


def test_rows_longer_than_a_unit_are_split() -> None:
    rgb, ir = cases.twins(3, (1 << 18) * 2 + 77, seed=3)
    for isa in SETS:
        compare(Native(isa), rgb, ir, seed=3)
    theta, mean = cases.twins(3, rgb[0].shape[1], seed=5), cases.twins(3, rgb[0].shape[1], seed=6)
    compare_observation(Native(), rgb, ir, theta, mean, 0.1)


def test_the_channel_axis_may_be_any() -> None:
    """A transposed convolution: the rows of (C_in, C, k, k) along axis 1."""
    (rgb,), (ir,) = cases.twins(6, 9, 2, 2)
    r = torch.rand(2, 9, generator=cases.rng(8))
    along_1 = [rgb.clone()], [ir.clone()]
    record = Native().decide_and_apply_(bucket_of(*along_1, (1,)), r, RaGradRule())
    along_0 = [rgb.movedim(1, 0).contiguous()], [ir.movedim(1, 0).contiguous()]
    same = Native().decide_and_apply_(bucket_of(*along_0), r, RaGradRule())
    assert torch.equal(record.mask, same.mask)
    assert record.count() > 0
    for a, b in zip(along_1, along_0, strict=True):
        torch.testing.assert_close(a[0].movedim(1, 0), b[0], rtol=1e-6, atol=0)


class TestFromStepToStep:
    """The row table recognises gradients that moved, and nothing else."""

    def setup_method(self) -> None:
        self.given = Reliability([torch.tensor([0.9, 0.8, 0.1])], [torch.tensor([0.1, 0.2, 0.3])])

    def step(self, rgb: Tensor | None, ir: Tensor | None, backend: str) -> Conflicts:
        return correct_([rgb], [ir], self.given, backend=backend)

    def test_new_addresses_other_strides_other_dtypes_and_absent_gradients(self) -> None:
        (rgb,), (ir,) = cases.twins(3, 4, 3, 3, agreement=-0.9)
        last = torch.channels_last
        for change in (
            lambda x: x.clone(),
            lambda x: x.clone(),
            lambda x: x.contiguous(memory_format=last),
            lambda x: x.to(torch.bfloat16),
            lambda x: None,
            lambda x: x.clone(),
            lambda x: x.reshape(3, 36).clone(),
        ):
            mine, true = [change(x) for x in (rgb, ir)], [change(x) for x in (rgb, ir)]
            a, b = self.step(*mine, "native"), self.step(*true, "reference")
            assert torch.equal(a.mask, b.mask)
            for x, y in zip(mine, true, strict=True):
                if x is not None and y is not None:
                    torch.testing.assert_close(x, y)
        assert a.count() > 0

    def test_the_same_memory_on_both_sides_is_refused_later_too(self) -> None:
        (rgb,), (ir,) = cases.twins(3, 5)
        self.step(rgb, ir, "native")
        with pytest.raises(ValueError, match="are the same memory"):
            self.step(rgb, rgb, "native")

    def test_what_has_no_memory_is_refused(self) -> None:
        (rgb,), (ir,) = cases.twins(3, 5)
        self.step(rgb, ir, "native")
        with pytest.raises(ValueError, match="is on meta"):
            self.step(rgb.to("meta"), ir.to("meta"), "native")

    def test_autograd_sees_the_change(self) -> None:
        (rgb,), (ir,) = cases.twins(3, 5)
        before = rgb._version
        self.step(rgb, ir, "native")
        assert rgb._version > before

    @pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
    def test_stats_may_be_copied_and_pickled(self, copied) -> None:  # type: ignore[no-untyped-def]
        (rgb,), (ir,) = cases.twins(3, 5)
        self.step(rgb.clone(), ir.clone(), "native")
        self.given = copied(self.given)
        assert self.step(rgb, ir, "native").count() > 0


def test_an_instruction_set_that_this_machine_lacks_is_refused() -> None:
    with pytest.raises(ValueError, match='cannot run the kernels for "quantum"'):
        corrected(Native("quantum"), *cases.twins(2, 3), torch.rand(2, 2), RaGradRule())


@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", cases.AWKWARD)
def test_any_matrices_are_applied_as_the_reference_does(
    name: str, dtype: torch.dtype, isa: str
) -> None:
    rgb, ir = ([x.to(dtype).clamp(-6e4, 6e4) for x in s] for s in cases.AWKWARD[name])
    compare_mixing(Native(isa), rgb, ir, matrices(sum(map(len, rgb))))


def test_rows_longer_than_a_part_are_rewritten_whole() -> None:
    rgb, ir = cases.twins(5, (1 << 18) + 77)
    compare_mixing(Native(), rgb, ir, matrices(5))


def test_a_row_that_keeps_its_matrix_keeps_the_payload_of_a_nan() -> None:
    rgb = torch.full((4, 3), 0x7FC12345, dtype=torch.int32).view(torch.float32)
    ir = torch.ones(4, 3)
    mix = torch.eye(2, dtype=torch.float64).repeat(4, 1, 1)
    mix[2, 1, 1] = 2.0
    before = bits(rgb).clone()
    (new_rgb,), (new_ir,) = mixed(Native(), [rgb], [ir], mix)
    assert torch.equal(bits(new_rgb), before)
    assert torch.equal(new_ir[[0, 1, 3]], ir[[0, 1, 3]])


class TestMemoryThatIsHandedOver:
    """What crosses to C++ is checked for type and size, whoever calls."""

    def how(self) -> dict[str, object]:
        return {"instruction_set": SETS[0], "threads": 1}

    @pytest.mark.parametrize(
        ("mix", "match"),
        [
            (torch.eye(2).repeat(4, 1, 1), "mix has the wrong dtype"),
            (torch.eye(2).double().repeat(3, 1, 1), "mix has 12 elements, expected 16"),
            (torch.eye(2).double().expand(4, 2, 2), "mix has 16 scattered elements"),
        ],
    )
    def test_it_is_named(self, mix: Tensor, match: str) -> None:
        bucket = bucket_of([torch.ones(4, 3)], [torch.ones(4, 3)])
        with pytest.raises(ValueError, match=match):
            bucket.table.apply(mix=mix, **self.how())
