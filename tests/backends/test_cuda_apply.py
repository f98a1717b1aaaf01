"""The logic of the CUDA kernels for `apply_`, run on the host, and of rules that need it."""

from __future__ import annotations

import ctypes
import struct
from itertools import product

import pytest
import torch
from torch import Tensor

from ragrad_ext.backends import Backend
from ragrad_ext.backends.reference import Reference
from ragrad_ext.rules.decide import decide
from ragrad_ext.rules.registry import RuleName, rule_of

from ..lib import cases
from ..lib.cuda_on_host.backend import OnHost, Sizes
from ..lib.parity import Side, bits, bucket_of, clone, compare_mixing, matrices, matrices_for, mixed
from ..lib.tolerances import RESULT

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
pytestmark = pytest.mark.slow


def rows_of(side: Side) -> int:
    return sum(map(len, side))


@pytest.mark.parametrize("dtype", DTYPES)
def test_hand_worked_matrices(cuda_on_host: ctypes.CDLL, dtype: torch.dtype) -> None:
    """Every row of M is used, in its place, on the original rows."""
    rgb, ir = torch.tensor([[1.0, 2.0]] * 4), torch.tensor([[10.0, -4.0]] * 4)
    mix = torch.tensor(
        [
            [[1, 0], [0, 1]],
            [[0.5, 0.25], [0, 1]],
            [[1, 0], [3, 2]],
            [[0, 1], [1, 0]],
        ],
        dtype=torch.float64,
    )
    new_rgb, new_ir = mixed(OnHost(cuda_on_host), [rgb.to(dtype)], [ir.to(dtype)], mix)
    assert new_rgb[0].tolist() == [[1, 2], [3, 0], [1, 2], [10, -4]]
    assert new_ir[0].tolist() == [[10, -4], [10, -4], [23, -2], [1, 2]]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", cases.AWKWARD)
def test_apply_agrees_on_awkward_inputs(
    cuda_on_host: ctypes.CDLL, name: str, dtype: torch.dtype
) -> None:
    rgb, ir = ([cases.cast(x, dtype) for x in side] for side in cases.AWKWARD[name])
    for seed in range(3):
        compare_mixing(OnHost(cuda_on_host), rgb, ir, matrices_for(rgb, ir, seed))


@pytest.mark.parametrize("seed", range(4))
def test_apply_agrees_on_random_layers(cuda_on_host: ctypes.CDLL, seed: int) -> None:
    """Layers of every width and dtype, cut as on a device or much smaller."""
    g = cases.rng(seed)
    rgb: Side = []
    ir: Side = []
    for l in range(9):
        c, n = (
            int(torch.randint(1, top, (), generator=g))
            for top in ((40, 900) if l % 2 else (300, 20))
        )
        a, b = cases.twins(c, n, seed=10 * seed + l)
        rgb += [x.to(DTYPES[l % 3]) for x in a]
        ir += [x.to(DTYPES[l % 3]) for x in b]
    sizes = Sizes(4096, 32768, 4096, 1 << 30) if seed % 2 else None
    backend = OnHost(cuda_on_host, (1, 7)[seed // 2], seed, sizes)
    compare_mixing(backend, rgb, ir, matrices_for(rgb, ir, seed))


def test_the_same_bits_whatever_the_order_and_the_number_of_blocks(
    cuda_on_host: ctypes.CDLL,
) -> None:
    """Split rows, several launches; nothing is kept from call to call."""
    layers = [(24, 900), (200, 20), (2, 700), (5, 64), (64, 3)]
    pairs = [cases.twins(c, n, seed=c) for c, n in layers]
    rgb, ir = ([p[m][0] for p in pairs] for m in (0, 1))
    mix = matrices_for(rgb, ir)
    expected = mixed(OnHost(cuda_on_host, 1), rgb, ir, mix)
    compare_mixing(OnHost(cuda_on_host, 1), rgb, ir, mix)
    for blocks, seed in product((2, 5), range(4)):
        new_rgb, new_ir = clone(rgb), clone(ir)
        run = OnHost(cuda_on_host, blocks).open(bucket_of(new_rgb, new_ir))
        run.apply(mix, seed)
        assert run.launches == 3
        for a, b in zip(new_rgb + new_ir, expected[0] + expected[1], strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("dtype", "pattern"),
    [
        (torch.float32, struct.unpack("i", struct.pack("I", 0xFFA12345))[0]),
        (torch.bfloat16, 0x7F93),
        (torch.float16, 0x7D23),
    ],
)
def test_a_unit_row_of_m_keeps_every_byte(
    cuda_on_host: ctypes.CDLL, dtype: torch.dtype, pattern: int
) -> None:
    """Signalling nans and signs of zeros too, in pairs that change not at all or in one row."""
    shape = (6, 70)
    nan = torch.full(shape, pattern, dtype={2: torch.int16, 4: torch.int32}[dtype.itemsize])
    odd = nan.view(dtype)
    odd[:, 1::2] = -0.0
    plain = torch.ones(shape, dtype=dtype)
    eye = torch.eye(2, dtype=torch.float64).expand(6, 2, 2)
    strided = cases.cast(cases.transposed(odd), dtype)
    for side in (odd, strided):
        for a, b in ((side, plain), (plain, side), (side, odd)):
            new_rgb, new_ir = mixed(OnHost(cuda_on_host), [a], [b], eye)
            assert torch.equal(bits(new_rgb[0]), bits(a))
            assert torch.equal(bits(new_ir[0]), bits(b))
        one = eye.clone()
        one[:, 0] = torch.tensor([2.0, 0.0])
        new_rgb, new_ir = mixed(OnHost(cuda_on_host), [plain], [side], one)
        assert torch.equal(bits(new_ir[0]), bits(side))


def test_results_beyond_the_range_saturate(cuda_on_host: ctypes.CDLL) -> None:
    mix = torch.tensor([[[2.0, 1.0], [-3.0, 0.5]]], dtype=torch.float64)
    for dtype in DTYPES:
        top = torch.finfo(dtype).max
        rgb = torch.tensor([[top, -top, 1.0, top / 2]], dtype=dtype)
        ir = torch.tensor([[top, -top, 2.0, 0.0]], dtype=dtype)
        new_rgb, new_ir = mixed(OnHost(cuda_on_host), [rgb], [ir], mix)
        assert new_rgb[0].tolist() == [[top, -top, 4.0, top]]
        assert new_ir[0].tolist() == [[-top, top, -2.0, -top]]
        compare_mixing(OnHost(cuda_on_host), [rgb], [ir], mix)


def test_skipped_pairs_are_passed_over(cuda_on_host: ctypes.CDLL) -> None:
    """Rows after them still get their own matrices."""
    (a, b), (x, y) = (cases.twins(6, 10)[m] + cases.twins(8, 70)[m] for m in (0, 1))
    mix = matrices(20)
    empty = torch.empty(6, 0)
    new_rgb, new_ir = mixed(OnHost(cuda_on_host), [a, empty, b], [x, empty, y], mix)
    there = torch.cat([mix[:6], mix[12:]])
    alone_rgb, alone_ir = mixed(OnHost(cuda_on_host), [a, b], [x, y], there)
    for l, k in ((0, 0), (2, 1)):
        assert torch.equal(new_rgb[l], alone_rgb[k])
        assert torch.equal(new_ir[l], alone_ir[k])
    compare_mixing(OnHost(cuda_on_host), [a, b], [x, y], there)


def by_verbs(
    backend: Backend, rgb: Side, ir: Side, r: Tensor, name: RuleName
) -> tuple[Side, Side, Tensor]:
    """What observe, decide and apply make of copies; and which rows changed."""
    new_rgb, new_ir = clone(rgb), clone(ir)
    bucket = bucket_of(new_rgb, new_ir)
    gram = backend.observe_(bucket, bucket.nothing, None).gram
    mix, found = decide(gram, r, bucket.layout, rule_of(name))
    backend.apply_(bucket, mix)
    return new_rgb, new_ir, found.mask


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rule", ["ragrad", "pcgrad", "imtl"])
def test_rules_agree_end_to_end(
    cuda_on_host: ctypes.CDLL, rule: RuleName, dtype: torch.dtype
) -> None:
    layers = [(24, 900), (60, 20), (2, 700), (5, 64), (64, 3)]
    pairs = [cases.twins(c, n, seed=c) for c, n in layers]
    rgb, ir = ([p[m][0].to(dtype) for p in pairs] for m in (0, 1))
    rgb[2][1, 600] = torch.inf  # this layer stays as it is
    r = torch.rand(2, rows_of(rgb), generator=cases.rng(5))
    mine_rgb, mine_ir, mine_mask = by_verbs(OnHost(cuda_on_host), rgb, ir, r, rule)
    true_rgb, true_ir, true_mask = by_verbs(Reference(), rgb, ir, r, rule)
    assert torch.equal(mine_mask, true_mask)
    assert true_mask.any()
    for mine, true, old in ((mine_rgb, true_rgb, rgb), (mine_ir, true_ir, ir)):
        assert torch.equal(bits(mine[2]), bits(old[2]))
        for l in (0, 1, 3, 4):
            size = torch.maximum(true[l].double().norm(dim=1), old[l].double().norm(dim=1))
            error = (mine[l].double() - true[l].double()).norm(dim=1)
            assert (error <= RESULT[dtype] * size).all()
