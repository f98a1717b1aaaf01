"""`correct_`: agreement with exact arithmetic, laws, edges, and errors."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ragrad_ext import Conflicts, Reliability, Repa, correct_
from ragrad_ext.rules import RaGradRule

from .lib import cases, oracle
from .lib.tolerances import MARGIN, RESULT, STAGE


def run(rgb: list[Tensor], ir: list[Tensor], seed: int = 0, **options: object) -> tuple:
    """Clones (strides kept) after the correction, the reliability and the record."""
    out = [[x.clone(memory_format=torch.preserve_format) for x in side] for side in (rgb, ir)]
    r_rgb = [cases.reliabilities(len(x), seed)[0][0] for x in rgb]
    r_ir = [cases.reliabilities(len(x), seed)[1][0] for x in ir]
    record = correct_(*out, Reliability(r_rgb, r_ir), **options)  # type: ignore[arg-type]
    return out[0], out[1], (r_rgb, r_ir), record


def compare(rgb: list[Tensor], ir: list[Tensor], seed: int = 0) -> tuple[int, int]:
    """Check one call against the oracle; returns (rows compared, rows inside the margin)."""
    new_rgb, new_ir, (r_rgb, r_ir), record = run(rgb, ir, seed)
    close = 0
    for l in range(len(rgb)):
        true = oracle.correct(rgb[l], ir[l], r_rgb[l], r_ir[l])
        mine = record.layer(l)
        for i in range(len(rgb[l])):
            assert mine.cosine[i].item() == pytest.approx(true["cosine"][i], abs=STAGE)
            if true["margin"][i] <= MARGIN:
                close += 1
                continue
            assert bool(mine.mask[i]) == true["mask"][i]
            assert mine.strength[i].item() == pytest.approx(true["strength"][i], abs=STAGE)
            for new, old, exact in (
                (new_rgb[l][i], rgb[l][i], true["rgb"][i]),
                (new_ir[l][i], ir[l][i], true["ir"][i]),
            ):
                if torch.equal(new, old):
                    continue
                exact_row = torch.tensor([float(x) for x in exact], dtype=torch.float64)
                error = (new.double().flatten() - exact_row).norm()
                assert error <= RESULT[new.dtype] * exact_row.norm()
    return record.mask.numel(), close


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", cases.AWKWARD)
def test_agrees_with_exact_arithmetic(name: str, dtype: torch.dtype) -> None:
    rgb, ir = ([x.to(dtype) for x in side] for side in cases.AWKWARD[name])
    if all(x.isfinite().all() for x in (*rgb, *ir)):  # float16 cannot hold the large scales
        compare(rgb, ir)
    else:
        new_rgb, new_ir, _, record = run(rgb, ir)
        assert record.count() == 0
        assert all(torch.equal(a, b) for a, b in zip(new_rgb + new_ir, rgb + ir, strict=True))


def test_at_most_one_row_in_a_thousand_lies_inside_the_margin() -> None:
    rows = close = 0
    for seed in range(40):
        rgb, ir = cases.twins(64, 18, seed=seed)
        compared, inside = compare(rgb, ir, seed)
        rows, close = rows + compared, close + inside
    assert rows == 40 * 64
    assert close <= rows / 1000


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.integers(1, 12), st.integers(1, 20), st.integers(0, 10**6),
    st.floats(-0.95, 0.95), st.sampled_from([1e-12, 1e-3, 1.0, 1e6]),
)  # fmt: skip
def test_agrees_with_exact_arithmetic_on_random_layers(
    channels: int, elements: int, seed: int, agreement: float, scale: float
) -> None:
    compare(
        *cases.twins(channels, elements, seed=seed, agreement=agreement, scale=scale), seed=seed
    )


def bits(x: Tensor) -> Tensor:
    return x.contiguous().view(torch.int16 if x.element_size() == 2 else torch.int32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_only_weak_rows_of_conflicts_are_written(dtype: torch.dtype) -> None:
    rgb, ir = ([x.to(dtype) for x in side] for side in cases.twins(64, 5))
    new_rgb, new_ir, (r_rgb, r_ir), record = run(rgb, ir)
    assert 0 < record.count() < 64
    weak_is_ir = r_rgb[0] > r_ir[0]
    changed_rgb = (bits(new_rgb[0]) != bits(rgb[0])).any(1)
    changed_ir = (bits(new_ir[0]) != bits(ir[0])).any(1)
    assert torch.equal(changed_rgb, record.mask & ~weak_is_ir)
    assert torch.equal(changed_ir, record.mask & weak_is_ir)


def test_the_memory_around_a_slice_is_not_written() -> None:
    rgb, ir = cases.AWKWARD["slices"]
    wide = [torch.full((16, 80), 7.0) for _ in range(2)]
    views = [w[:, 3:75] for w in wide]
    for view, x in zip(views, (rgb[0], ir[0]), strict=True):
        view.copy_(x)
    correct_([views[0]], [views[1]], Reliability(*cases.reliabilities(16)))
    for w in wide:
        assert (w[:, :3] == 7).all()
        assert (w[:, 75:] == 7).all()


class TestLaws:
    rgb, ir = cases.twins(48, 20)

    @pytest.mark.parametrize("scale", [2.0**-33, 2.0**33])
    def test_scale(self, scale: float) -> None:
        """Powers of two near 1e-10 and 1e+10: scaled results, to the bit, and equal decisions."""
        new_rgb, new_ir, _, record = run(self.rgb, self.ir)
        big_rgb, big_ir, _, big = run([x * scale for x in self.rgb], [x * scale for x in self.ir])
        assert torch.equal(record.mask, big.mask)
        assert torch.equal(new_rgb[0] * scale, big_rgb[0])
        assert torch.equal(new_ir[0] * scale, big_ir[0])

    def test_permutation_of_channels(self) -> None:
        order = torch.randperm(48)
        r_rgb, r_ir = cases.reliabilities(48)
        plain = [self.rgb[0].clone()], [self.ir[0].clone()]
        mixed = [self.rgb[0][order].clone()], [self.ir[0][order].clone()]
        record = correct_(*plain, Reliability(r_rgb, r_ir))
        shuffled = correct_(*mixed, Reliability([r_rgb[0][order]], [r_ir[0][order]]))
        assert torch.equal(record.mask[order], shuffled.mask)
        assert torch.equal(plain[0][0][order], mixed[0][0])
        assert torch.equal(plain[1][0][order], mixed[1][0])

    def test_swap_of_modalities(self) -> None:
        r_rgb, r_ir = cases.reliabilities(48)
        plain = [self.rgb[0].clone()], [self.ir[0].clone()]
        other = [self.ir[0].clone()], [self.rgb[0].clone()]
        record = correct_(*plain, Reliability(r_rgb, r_ir))
        swapped = correct_(*other, Reliability(r_ir, r_rgb))
        assert torch.equal(record.mask, swapped.mask)
        assert torch.equal(plain[0][0], other[1][0])
        assert torch.equal(plain[1][0], other[0][0])

    def test_without_conflict_nothing_moves_however_often(self) -> None:
        rgb, ir = cases.AWKWARD["no negatives"]
        new_rgb, new_ir, _, record = run(rgb, ir)
        assert record.count() == 0
        assert torch.equal(new_rgb[0], rgb[0])
        assert torch.equal(new_ir[0], ir[0])

    def test_a_corrected_row_never_opposes_the_reliable_one(self) -> None:
        """Eq. 9 leaves lambda |strong|^2 > 0 along the strong gradient."""
        new_rgb, new_ir, _, record = run(self.rgb, self.ir)
        dots = (new_rgb[0] * new_ir[0]).sum(1)[record.mask]
        assert len(dots)
        assert (dots > 0).all()

    def test_same_inputs_same_bits(self) -> None:
        first, again = run(self.rgb, self.ir), run(self.rgb, self.ir)
        assert torch.equal(first[0][0], again[0][0])
        assert torch.equal(first[3].cosine, again[3].cosine)


def test_ties_of_a_whole_layer_are_no_conflict() -> None:
    """Exactly opposite twins: equal cosines whatever the rounding of their sums."""
    rgb, ir = cases.AWKWARD["all opposite"]
    _, _, _, record = run(rgb, ir)
    assert record.cosine.tolist() == [-1.0] * 16
    assert record.count() == 0
    assert run(rgb, ir, rule=RaGradRule(identify="cosine"))[3].count() == 16


def test_large_float16_gradients_overflow_neither_inside_nor_outside() -> None:
    """Squares of 6e4 exceed float16 at once; Eq. 9 itself may exceed it, and then saturates."""
    rgb, ir = ([(x.sign() * 6e4).half()] for x in (s[0] for s in cases.twins(32, 50)))
    new_rgb, new_ir, (r_rgb, r_ir), record = run(rgb, ir)
    true = oracle.correct(rgb[0], ir[0], r_rgb[0], r_ir[0])
    assert record.count() == sum(true["mask"]) > 0
    for new, exact in ((new_rgb[0], true["rgb"]), (new_ir[0], true["ir"])):
        expected = torch.tensor([[float(x) for x in row] for row in exact]).clamp(-65504, 65504)
        assert new.isfinite().all()
        assert torch.allclose(new.float(), expected, rtol=2**-11, atol=0)
    assert (new_rgb[0].abs().max() == 65504) or (new_ir[0].abs().max() == 65504)


def test_skipped_pairs_keep_their_rows_and_their_values() -> None:
    rgb, ir = cases.AWKWARD["several layers"]
    everything = run(rgb, ir)[3]
    holes: tuple[list[Tensor | None], list[Tensor | None]]
    holes = ([rgb[0].clone(), None, rgb[2].clone()], [ir[0].clone(), ir[1].clone(), None])
    r = (
        [cases.reliabilities(len(x))[0][0] for x in rgb],
        [cases.reliabilities(len(x))[1][0] for x in ir],
    )
    record = correct_(*holes, Reliability(*r))
    assert record.offsets == everything.offsets
    assert torch.equal(record.layer(0).mask, everything.layer(0).mask)
    for l in (1, 2):
        assert record.layer(l).count() == 0
        assert not record.layer(l).cosine.any()
    assert torch.equal(holes[1][1], ir[1])  # type: ignore[arg-type]
    assert torch.equal(holes[0][2], rgb[2])  # type: ignore[arg-type]


def test_nothing_to_do() -> None:
    assert correct_([], [], Reliability([], [])).fraction() == 0.0
    empty = correct_([torch.zeros(4, 0)], [torch.zeros(4, 0)], Reliability(*cases.reliabilities(4)))
    assert empty.count() == 0
    assert len(empty) == 1
    none = correct_([torch.zeros(0, 4)], [torch.zeros(0, 4)], Reliability(*cases.reliabilities(0)))
    assert none.mask.shape == (0,)


def test_the_record() -> None:
    rgb, ir = cases.AWKWARD["several layers"]
    record = run(rgb, ir)[3]
    assert isinstance(record, Conflicts)
    assert record.offsets == (0, 4, 36, 43)
    assert len(record) == 3
    assert (
        record.count() == int(record.mask.sum()) == sum(record.layer(l).count() for l in range(3))
    )
    assert record.fraction() == record.count() / 43
    assert torch.equal(record.layer(-1).cosine, record.cosine[36:])
    assert record.layer(1).offsets == (0, 32)
    with pytest.raises(IndexError):
        record.layer(3)


def good() -> tuple[list, list, Reliability]:
    rgb, ir = cases.AWKWARD["several layers"]
    r = Reliability([torch.full((len(x),), 0.5) for x in rgb], [torch.rand(len(x)) for x in ir])
    return [x.clone() for x in rgb], [x.clone() for x in ir], r


def wrong_shape(rgb: list, ir: list) -> None:
    ir[2] = ir[2][:, :-1]


def wrong_dtype(rgb: list, ir: list) -> None:
    ir[2] = ir[2].half()


def integers(rgb: list, ir: list) -> None:
    rgb[2] = rgb[2].int()


def complex_numbers(rgb: list, ir: list) -> None:
    rgb[2] = rgb[2].cfloat()


def doubles(rgb: list, ir: list) -> None:
    rgb[2] = rgb[2].double()


def sparse(rgb: list, ir: list) -> None:
    rgb[2] = rgb[2].to_sparse()


def unequal_lengths(rgb: list, ir: list) -> None:
    ir.pop()


def too_few(rgb: list, ir: list) -> None:
    rgb.pop()
    ir.pop()


def shared(rgb: list, ir: list) -> None:
    ir[2] = rgb[2]


def expanded(rgb: list, ir: list) -> None:
    ir[2] = ir[2][:, :1].expand_as(ir[2])


def other_channels(rgb: list, ir: list) -> None:
    rgb[2], ir[2] = rgb[2][:-1], ir[2][:-1]


def not_a_tensor(rgb: list, ir: list) -> None:
    rgb[2] = rgb[2].numpy()


def scalar(rgb: list, ir: list) -> None:
    rgb[2] = ir[2] = torch.tensor(1.0)


def other_device(rgb: list, ir: list) -> None:
    ir[2] = ir[2].to("meta")


@pytest.mark.parametrize(
    ("spoil", "error", "match"),
    [
        (wrong_shape, ValueError, r"grads_rgb\[2\] has shape \(7, 250\), .*\(7, 249\)"),
        (wrong_dtype, TypeError, r"grads_rgb\[2\] is torch.float32, grads_ir\[2\] .*float16"),
        (integers, TypeError, r"grads_rgb\[2\] has dtype torch.int32.*float32, bfloat16 or"),
        (complex_numbers, TypeError, r"grads_rgb\[2\] has dtype torch.complex64"),
        (doubles, TypeError, r"grads_rgb\[2\] has dtype torch.float64"),
        (sparse, TypeError, r"grads_rgb\[2\] is sparse.*dense gradient"),
        (unequal_lengths, ValueError, "grads_rgb has 3 entries, grads_ir has 2"),
        (too_few, ValueError, "stats describe 3 pairs, but 2 pairs of gradients"),
        (shared, ValueError, r"grads_rgb\[2\] and grads_ir\[2\] are the same memory"),
        (expanded, ValueError, r"grads_ir\[2\] is an expanded tensor.*contiguous\(\)"),
        (other_channels, ValueError, "stats describe 7 channels for pair 2.*have 6"),
        (not_a_tensor, TypeError, r"grads_rgb\[2\] is ndarray"),
        (scalar, ValueError, r"grads_rgb\[2\] is a single number"),
        (other_device, ValueError, r"grads_ir\[2\] is on meta, expected cpu"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("measured", [False, True])
def test_bad_gradients_are_named_before_anything_changes(
    spoil: Callable[[list, list], None], error: type[Exception], match: str, measured: bool
) -> None:
    rgb, ir, reliability = good()
    repa = Repa([x.clone() for x in rgb], [x.clone() for x in ir])
    state = repa.state_dict()
    spoil(rgb, ir)
    before = rgb[0].clone(), ir[0].clone()
    with pytest.raises(error, match=match):
        correct_(rgb, ir, repa if measured else reliability)
    assert torch.equal(rgb[0], before[0])
    assert torch.equal(ir[0], before[1])
    assert torch.equal(state["steps"], repa.state_dict()["steps"])


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"backend": "cuda"}, ValueError, 'backend "cuda" is unknown; choose "auto" or one of'),
        ({"rule": "gradnorm"}, ValueError, 'rule "gradnorm" is unknown; choose one of "ragrad"'),
        ({"rule": 3}, TypeError, "rule is int; pass a name"),
        ({"rule": RaGradRule}, TypeError, "rule is the class RaGradRule; pass a name, an instance"),
    ],
)
def test_bad_options_are_named(options: dict, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        correct_(*good(), **options)


def test_stats_of_another_kind_are_named() -> None:
    rgb, ir, _ = good()
    with pytest.raises(TypeError, match="stats is tuple; pass a Reliability or a Repa"):
        correct_(rgb, ir, (rgb, ir))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("rgb", "ir", "error", "match"),
    [
        ([torch.tensor([0.5, 1.2])], [torch.rand(2)], ValueError, r"rgb\[0\]\[1\] is 1.2"),
        ([torch.rand(2)], [torch.tensor([0.5, -0.1])], ValueError, r"ir\[0\]\[1\] is -0.1"),
        ([torch.tensor([math.nan, 0.1])], [torch.rand(2)], ValueError, r"rgb\[0\]\[0\] is nan"),
        ([torch.rand(2)], [], ValueError, "1 tensors for rgb and 0 for ir"),
        ([torch.rand(2)], [torch.rand(3)], ValueError, "2 channels.*3"),
        ([torch.rand(2, 1)], [torch.rand(2, 1)], ValueError, r"shape \(2, 1\).*\(C_l,\)"),
        ([torch.tensor([0, 1])], [torch.rand(2)], TypeError, "torch.int64"),
        ([[0.5, 0.5]], [torch.rand(2)], TypeError, "list"),
    ],
)
def test_bad_reliability_is_named(rgb: list, ir: list, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        Reliability(rgb, ir)


@pytest.mark.data
def test_agrees_with_exact_arithmetic_on_real_gradients(real_data: Path) -> None:
    """One backward of a random two-stream YOLOv5s-type detector; the smaller layers."""
    with np.load(real_data / "gradients.npz", allow_pickle=False) as data:
        keys = [k[1:] for k in data if k[0] == "a" and data[k].size <= 6000]
        layers = [[torch.from_numpy(data[s + k]) for s in "ab"] for k in keys]
    rows = close = 0
    for l, (g_rgb, g_ir) in enumerate(layers):
        compared, inside = compare([g_rgb], [g_ir], seed=l)
        rows, close = rows + compared, close + inside
    assert rows > 100
    assert close <= rows / 1000
