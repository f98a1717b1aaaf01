"""Apply in the Triton backend, by any matrices: as the reference, in Triton's interpreter."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from ragrad_ext import Repa, correct_
from ragrad_ext.backends.triton import plan
from ragrad_ext.backends.triton.backend import Triton
from ragrad_ext.backends.triton.tuning import Tuning
from ragrad_ext.rows.bucket import Buckets
from ragrad_ext.rows.layout import Layout
from ragrad_ext.rules.registry import RuleName

from ...lib import cases
from ...lib.parity import Side, bits, bucket_of, clone, hold_to_exact, matrices
from ...lib.triton_cases import (
    CPU,
    DTYPES,
    SLOW,
    SMALL,
    USUAL,
    compare_mixing,
    layers,
    tolerance,
    tune,
)

pytest.importorskip("triton")
pytestmark = pytest.mark.interpreted
IDENTITY = torch.eye(2, dtype=torch.float64)


@pytest.mark.parametrize(
    ("dtype", "how"),
    [
        (torch.float32, SMALL),
        (torch.bfloat16, USUAL),
        pytest.param(torch.float32, USUAL, marks=SLOW),
        pytest.param(torch.float16, SMALL, marks=SLOW),
    ],
)
@pytest.mark.parametrize("name", cases.AWKWARD)
def test_it_agrees_on_awkward_inputs(
    name: str, dtype: torch.dtype, how: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tune(monkeypatch, how)
    rgb, ir = ([cases.cast(x, dtype) for x in side] for side in cases.AWKWARD[name])
    finite = torch.cat([finite_rows(a) & finite_rows(b) for a, b in zip(rgb, ir, strict=True)])
    for shift in range(5):  # every row has every kind of matrix once
        mix = matrices(len(finite)).roll(shift, 0)
        mix[~finite] = IDENTITY  # as `decide` has it: 1e10 is inf in float16
        compare_mixing(Triton(), rgb, ir, mix)


def finite_rows(g: Tensor) -> Tensor:
    return g.isfinite().reshape(len(g), -1).all(1)


def test_by_hand() -> None:
    """Both new rows come of both old ones: (1, 2) and (10, 20) by [[2, 1], [-1, 0]]."""
    rgb, ir = [torch.tensor([[1.0, 2.0]])], [torch.tensor([[10.0, 20.0]])]
    mix = torch.tensor([[[2.0, 1.0], [-1.0, 0.0]]], dtype=torch.float64)
    Triton().apply_(bucket_of(rgb, ir), mix)
    assert rgb[0].tolist() == [[12.0, 24.0]]
    assert ir[0].tolist() == [[-1.0, -2.0]]


@pytest.mark.parametrize("shape", [(700, 3), pytest.param((6, 9000), marks=SLOW), (5, 64)])
def test_rows_of_every_length(shape: tuple[int, int]) -> None:
    """Many in a tile, one in a tile, and rows in several pieces."""
    limits = plan.Limits(tile_bytes=4096, unit_bytes=4096)
    with pytest.MonkeyPatch.context() as patch:
        tune(patch, (Tuning(limits), 3))
        compare_mixing(Triton(), *cases.twins(*shape), matrices(shape[0]))


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_that_do_not_change_keep_every_bit(dtype: torch.dtype) -> None:
    """A nan keeps its payload, and a zero its sign; also beside rows that change."""
    rgb, ir = ([x.to(dtype) for x in side] for side in cases.twins(6, 40))
    odd = {2: (torch.int16, 0x7FFF - 5), 4: (torch.int32, 0x7FFFFFFF - 5)}[dtype.itemsize]
    for side in (rgb, ir):
        side[0][:2].view(odd[0])[:, ::3] = odd[1]  # nan, with a payload
        side[0][:2, 1::3] = -0.0
    assert rgb[0][:2].isnan().any()
    mix = IDENTITY.repeat(6, 1, 1)
    mix[3] = torch.tensor([[0.5, 1.0], [1.0, -0.5]])
    mix[4, 0], mix[5, 1] = torch.tensor([2.0, 1.0]), torch.tensor([2.0, 1.0])
    before = clone(rgb), clone(ir)
    Triton().apply_(bucket_of(rgb, ir), mix)
    for new, old, kept in ((rgb, before[0], [0, 1, 2, 5]), (ir, before[1], [0, 1, 2, 4])):
        same = (bits(new[0]) == bits(old[0])).all(1)
        assert same.nonzero()[:, 0].tolist() == kept


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_written_saturates(dtype: torch.dtype) -> None:
    largest = torch.finfo(dtype).max
    rgb, ir = [torch.full((1, 8), largest, dtype=dtype)], [torch.ones(1, 8, dtype=dtype)]
    mix = torch.tensor([[[2.0, 0.0], [-2.0, 1.0]]], dtype=torch.float64)
    Triton().apply_(bucket_of(rgb, ir), mix)
    assert (rgb[0] == largest).all()
    assert (ir[0] == -largest).all()


def test_every_dtype_rows_that_are_no_runs_and_pairs_that_are_skipped() -> None:
    rgb, ir = layers((4, 8), (3, 5), (6, 7), (9, 30), (2, 6))
    types = (torch.float32, torch.float32, torch.float16, torch.float32, torch.bfloat16)
    rgb, ir = ([x.to(t) for x, t in zip(side, types, strict=True)] for side in (rgb, ir))
    rgb[3], ir[3] = cases.transposed(rgb[3]), cases.transposed(ir[3])
    compare_mixing(Triton(), rgb, ir, matrices(24))
    before = clone(ir)
    some = [rgb[0], None, *rgb[2:]]
    bucket = Buckets(Layout.of([4, 3, 6, 9, 2]), (0,) * 5).bucket(some, ir, CPU)
    Triton().apply_(bucket, matrices(24))
    changed = [not torch.equal(a, b) for a, b in zip(ir, before, strict=True)]
    assert changed == [True, False, True, True, True]


@pytest.mark.parametrize("channels", [[], [0], [0, 3]])
def test_layers_without_rows(channels: list[int]) -> None:
    rgb, ir = ([torch.ones(c, 4) for c in channels] for _ in range(2))
    bucket = Buckets(Layout.of(channels), (0,) * len(channels)).bucket(rgb, ir, CPU)
    double = 2 * IDENTITY.repeat(sum(channels), 1, 1)
    Triton().apply_(bucket, double)
    assert all((x == 2).all() for x in rgb + ir)


def test_autograd_sees_the_change() -> None:
    rgb, ir = layers((3, 5))
    before = rgb[0]._version
    Triton().apply_(bucket_of(rgb, ir), matrices(3))
    assert rgb[0]._version > before


class TestRules:
    """End to end, through `correct_`."""

    @pytest.fixture(autouse=True)
    def _small_units(self, monkeypatch: pytest.MonkeyPatch) -> None:
        tune(monkeypatch, SMALL)

    @pytest.mark.parametrize("rule", ["pcgrad", "imtl"])
    @pytest.mark.slow
    @pytest.mark.parametrize("name", cases.AWKWARD)
    def test_it_agrees_with_exact_arithmetic(self, name: str, rule: RuleName) -> None:
        rgb, ir = cases.AWKWARD[name]
        new = clone(rgb), clone(ir)
        correct_(*new, rule=rule, backend="triton")
        hold_to_exact(rule, (rgb, ir), [new])

    @pytest.mark.parametrize("rule", ["pcgrad", "imtl"])
    @pytest.mark.parametrize("with_repa", [False, pytest.param(True, marks=SLOW)])
    def test_it_agrees_with_the_reference(self, rule: RuleName, with_repa: bool) -> None:
        rgb, ir = layers((12, 30), (9, 8), (7, 400), agreement=-0.2)
        rgb[1], ir[1] = rgb[1].bfloat16(), ir[1].bfloat16()
        rgb[2][3, 5] = math.nan  # that layer stays as it is
        outcomes = {}
        for name in ("triton", "reference"):
            work: tuple[Side, Side] = clone(rgb), clone(ir)
            stats = Repa(clone(ir), clone(rgb)) if with_repa else None
            outcomes[name] = correct_(*work, stats, rule=rule, backend=name), work[0] + work[1]
        (mine, mine_grads), (true, true_grads) = outcomes["triton"], outcomes["reference"]
        assert torch.equal(mine.mask, true.mask)
        assert 10 < mine.count() <= 21
        for old, a, b in zip(rgb + ir, mine_grads, true_grads, strict=True):
            if old.isnan().any():
                assert torch.equal(bits(a), bits(old))
            error = (a.double() - b.double()).nan_to_num(0).norm()
            assert error <= tolerance()[a.dtype] * b.double().nan_to_num(0).norm()
