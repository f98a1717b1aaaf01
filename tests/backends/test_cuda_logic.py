"""The logic of the CUDA kernels for `decide_and_apply_`, run on the host."""

from __future__ import annotations

import ctypes
import math
from itertools import product

import pytest
import torch
from torch import Tensor

from ragrad_ext.rows.conflicts import Conflicts
from ragrad_ext.rules import RaGradRule
from ragrad_ext.rules.ragrad import Identify, Resolve

from ..lib import cases
from ..lib.cuda_on_host.backend import OnHost, Sizes
from ..lib.parity import (
    Side,
    bits,
    bucket_of,
    clone,
    compare,
    corrected,
)

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
pytestmark = pytest.mark.slow


def found(record: Conflicts) -> list[Tensor]:
    return [record.cosine, record.gap, record.mask, record.strength]


@pytest.mark.parametrize("slow_double", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", cases.AWKWARD)
def test_correction_agrees_on_awkward_inputs(
    cuda_on_host: ctypes.CDLL, name: str, dtype: torch.dtype, slow_double: bool
) -> None:
    rgb, ir = ([cases.cast(x, dtype) for x in side] for side in cases.AWKWARD[name])
    compare(OnHost(cuda_on_host, slow_double=slow_double), rgb, ir)


@pytest.mark.parametrize(
    ("identify", "resolve", "eps"),
    [*product(["dual", "cosine"], ["blend", "project"], [1e-30]), ("dual", "blend", 0.5)],
)
def test_correction_agrees_under_every_option(
    cuda_on_host: ctypes.CDLL, identify: Identify, resolve: Resolve, eps: float
) -> None:
    rgb, ir = cases.AWKWARD["several layers"]
    compare(OnHost(cuda_on_host), rgb, ir, rule=RaGradRule(identify, resolve, eps))


@pytest.mark.parametrize("slow_double", [False, True])
@pytest.mark.parametrize("scale", [1e-25, 1e-16, 1e-4, 1e17, 1e19, 1e30])
@pytest.mark.parametrize("seed", range(4))
def test_correction_agrees_on_random_layers(
    cuda_on_host: ctypes.CDLL, seed: int, scale: float, slow_double: bool
) -> None:
    """Layers of every width, cut as on a device or much smaller, on one block or on seven."""
    g = cases.rng(seed)
    rgb: Side = []
    ir: Side = []
    for l in range(6):
        c, n = (
            int(torch.randint(1, top, (), generator=g))
            for top in ((40, 900) if l % 2 else (300, 20))
        )
        a, b = cases.twins(c, n, seed=10 * seed + l, scale=scale, agreement=-0.6 + 0.2 * l)
        dtype = DTYPES[l % 3] if scale == 1e-4 else DTYPES[l % 2]  # float16 has no such scales
        rgb += [x.to(dtype) for x in a]
        ir += [x.to(dtype) for x in b]
    sizes = Sizes(4096, 32768, 4096, 1 << 30) if seed % 2 else None
    backend = OnHost(cuda_on_host, (1, 7)[seed // 2], seed, sizes, slow_double=slow_double)
    compare(backend, rgb, ir, seed)


def test_at_most_one_row_in_a_thousand_lies_inside_the_margin(cuda_on_host: ctypes.CDLL) -> None:
    counts = [compare(OnHost(cuda_on_host), *cases.twins(200, 18, seed=s), s) for s in range(10)]
    rows, close = (sum(column) for column in zip(*counts, strict=True))
    assert rows == 2000
    assert close <= rows / 1000


@pytest.mark.parametrize("blocks", [1, 2, 7])
def test_layers_whose_rewrite_takes_more_tickets_than_there_are_blocks(
    cuda_on_host: ctypes.CDLL, blocks: int
) -> None:
    pairs = [cases.twins(300, 3, seed=l, agreement=-0.5) for l in range(12)]
    rgb, ir = ([p[m][0] for p in pairs] for m in (0, 1))
    compare(OnHost(cuda_on_host, blocks, sizes=Sizes(layers=100)), rgb, ir)


def test_sums_are_exact_where_double_is_slow(cuda_on_host: ctypes.CDLL) -> None:
    """Cosines of long rows with sums that nearly cancel, over all scales at once."""
    g = cases.rng(7)
    rgb, ir = (torch.randn(64, 4000, generator=g) for _ in range(2))
    rgb, ir = ((x.T * 10.0 ** torch.linspace(-22, 18, 64)).T.contiguous() for x in (rgb, ir))
    rgb[0], ir[1] = 0, 0
    r = torch.rand(2, 64, generator=g)
    slow, wide = (
        corrected(
            OnHost(cuda_on_host, sizes=Sizes(16384), slow_double=s), [rgb], [ir], r, RaGradRule()
        )[2]
        for s in (True, False)
    )
    torch.testing.assert_close(slow.cosine, wide.cosine, rtol=2**-23, atol=2**-40)
    assert torch.equal(slow.mask, wide.mask)


def test_dots_of_the_observation_spare_the_correction_a_read(cuda_on_host: ctypes.CDLL) -> None:
    rgb, ir = cases.AWKWARD["several layers"]
    r = torch.rand(2, 43, generator=cases.rng(5))
    (a_rgb, a_ir), (b_rgb, b_ir) = (clone(rgb), clone(ir)), (clone(rgb), clone(ir))
    run = OnHost(cuda_on_host).open(bucket_of(a_rgb, a_ir))
    a = run.decide_and_apply(r, RaGradRule(), run.observe(None).gram)
    b = OnHost(cuda_on_host).decide_and_apply_(bucket_of(b_rgb, b_ir), r, RaGradRule())
    for x, y in zip([*a_rgb, *a_ir, *found(a)], [*b_rgb, *b_ir, *found(b)], strict=True):
        assert torch.equal(x, y)
    assert a.count() > 0
    # and they are believed, not made again
    lying = run.decide_and_apply(r, RaGradRule(), torch.ones(43, 3, dtype=torch.float64))
    assert lying.count() == 0
    assert (lying.cosine == 1).all()


def test_the_same_bits_whatever_the_order_and_the_number_of_blocks(
    cuda_on_host: ctypes.CDLL,
) -> None:
    """Split rows, several launches; repeated on one workspace, which every launch leaves ready."""
    layers = [(24, 900), (200, 20), (2, 700), (5, 64), (64, 3)]  # the first two take many units
    pairs = [cases.twins(c, n, seed=c, agreement=-0.5) for c, n in layers]
    rgb, ir = ([p[m][0] for p in pairs] for m in (0, 1))
    r = torch.rand(2, sum(c for c, _ in layers), generator=cases.rng(3))
    first = corrected(OnHost(cuda_on_host, 1), rgb, ir, r, RaGradRule())
    assert first[2].count() > 0
    expected = [*first[0], *first[1], *found(first[2])]
    for blocks in (2, 5):
        new_rgb, new_ir = clone(rgb), clone(ir)
        backend = OnHost(cuda_on_host, blocks)
        run = backend.open(bucket_of(new_rgb, new_ir))
        for seed in range(8):
            for new, old in zip(new_rgb + new_ir, rgb + ir, strict=True):
                new.copy_(old)
            record = run.decide_and_apply(r, RaGradRule(), seed=seed)
            assert run.launches == 3
            results = [*new_rgb, *new_ir, *found(record)]
            assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))


def test_an_earlier_call_leaves_nothing_that_counts(cuda_on_host: ctypes.CDLL) -> None:
    """On one workspace, first one modality is weak and then the other one."""
    pairs = [cases.twins(c, n, seed=c, agreement=-0.5) for c, n in ((24, 900), (200, 20))]
    rgb, ir = ([p[m][0] for p in pairs] for m in (0, 1))
    r = torch.rand(2, 224, generator=cases.rng(3))
    new_rgb, new_ir = clone(rgb), clone(ir)
    run = OnHost(cuda_on_host).open(bucket_of(new_rgb, new_ir))
    for given in (r, r.flip(0)):
        for new, old in zip(new_rgb + new_ir, rgb + ir, strict=True):
            new.copy_(old)
        record = run.decide_and_apply(given, RaGradRule())
        expected = corrected(OnHost(cuda_on_host), rgb, ir, given, RaGradRule())
        results = [*new_rgb, *new_ir, *found(record)]
        fresh = [*expected[0], *expected[1], *found(expected[2])]
        assert all(torch.equal(a, b) for a, b in zip(results, fresh, strict=True))
        assert record.count() > 0


@pytest.mark.parametrize("slow_double", [False, True])
def test_a_layer_with_inf_or_nan_is_left_untouched(
    cuda_on_host: ctypes.CDLL, slow_double: bool
) -> None:
    backend = OnHost(cuda_on_host, slow_double=slow_double)
    for dtype, bad in product(DTYPES, (math.nan, math.inf, -math.inf)):
        rgb, ir = ([x.to(dtype) for x in side] for side in cases.twins(40, 37, agreement=-0.8))
        rgb, ir = rgb + clone(rgb), ir + clone(ir)
        rgb[0][2, 36] = bad
        compare(backend, rgb, ir)
        r = torch.rand(2, 80, generator=cases.rng(1))
        new_rgb, new_ir, record = corrected(backend, rgb, ir, r, RaGradRule())
        assert torch.equal(bits(new_rgb[0]), bits(rgb[0]))
        assert torch.equal(bits(new_ir[0]), bits(ir[0]))
        assert record.cosine[:40].isnan().all()
        assert record.mask[:40].sum() == 0 < record.mask[40:].sum()


def test_skipped_pairs_keep_their_zeros(cuda_on_host: ctypes.CDLL) -> None:
    (a, b), (x, y) = (cases.twins(6, 10)[m] + cases.twins(8, 70)[m] for m in (0, 1))
    r = torch.rand(2, 14 + 6, generator=cases.rng(2))
    rgb, ir = [a, torch.empty(6, 0), b], [x, torch.empty(6, 0), y]
    compare(OnHost(cuda_on_host), rgb, ir)
    record = OnHost(cuda_on_host).decide_and_apply_(
        bucket_of(*map(clone, (rgb, ir))), r, RaGradRule("cosine")
    )
    assert (record.gap[6:12] == 0).all()
    assert record.count() > 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_written_is_rounded_to_nearest_even(
    cuda_on_host: ctypes.CDLL, dtype: torch.dtype
) -> None:
    """Halfway cases, subnormals and the ends of the range, as `Tensor.to` rounds them."""
    tiny = torch.finfo(dtype).smallest_normal
    weak = torch.logspace(-9, 4, 4001, dtype=torch.float64)
    weak = torch.cat([weak, -weak, tiny * torch.linspace(-3, 3, 1001, dtype=torch.float64)])
    weak = weak.to(dtype)[None]
    # orthogonal twins but for one element, so that p and q of Eq. 9 are known exactly
    one = torch.zeros_like(weak)
    one[0, 0], weak[0, 0] = -1, 1
    backend = OnHost(cuda_on_host, sizes=Sizes(layers=1))
    r = torch.tensor([[0.25], [0.75]])
    new_rgb, new_ir, record = corrected(backend, [weak], [one], r, RaGradRule("cosine"))
    assert record.mask.tolist() == [True]
    lam = 1 / (1 + math.exp(-0.5))
    exact = (1 - lam) * weak.double()
    assert torch.equal(new_rgb[0][:, 1:], exact.to(dtype)[:, 1:])
    assert torch.equal(new_ir[0], one)


def test_a_result_beyond_the_range_saturates(cuda_on_host: ctypes.CDLL) -> None:
    for dtype in DTYPES:
        top = torch.finfo(dtype).max
        weak = torch.tensor([[top, -top, top, 1.0]], dtype=dtype)
        strong = torch.tensor([[-1.0, 1.0, 1.0, 0.0]], dtype=dtype)
        rgb, _, _ = corrected(
            OnHost(cuda_on_host), [weak], [strong], torch.tensor([[0.2], [0.8]]),
            RaGradRule("cosine", "project"),
        )  # fmt: skip
        assert rgb[0].isfinite().all()
        assert rgb[0][0, 2] == top
