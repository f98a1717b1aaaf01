"""The native backend on a CUDA device: parity, order, streams, graphs, and nothing that waits."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from ragrad_ext.backends import History
from ragrad_ext.backends.native import Native
from ragrad_ext.bucket import Buckets, Layout
from ragrad_ext.conflicts import Conflicts
from ragrad_ext.rgcr import Identify, Options, Resolve

from . import cases
from .parity import Side, bits, bucket_of, clone, compare, compare_observation, corrected
from .tolerances import RESULT

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def missing() -> str | None:
    """Why the kernels cannot run here; None if they can."""
    if not torch.cuda.is_available():
        return "no CUDA device that torch can use"
    return Native().unusable(torch.device("cuda", torch.cuda.current_device()))


WHY_NOT = missing()
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))]


def on_gpu(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """A copy with the same strides, gaps between rows included."""
    room = sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True)) + 1
    memory = torch.full((room,), 7.0, dtype=dtype or x.dtype, device="cuda")
    return memory.as_strided(x.shape, x.stride()).copy_(x)


def many_layers(dtype: torch.dtype = torch.float32) -> tuple[Side, Side]:
    """Rows short and long, odd and even, in more layers than one launch holds."""
    shapes = [(64, 3, 7, 7), (64, 64), (256, 576), (128, 4608), (3, 70001), (7, 1), (33, 9)]
    rgb, ir = [], []
    for l, shape in enumerate(shapes + [(16, 40 + n) for n in range(400)]):
        a, b = cases.twins(*shape, seed=l, agreement=-0.5)
        rgb.append(on_gpu(a[0], dtype))
        ir.append(on_gpu(b[0], dtype))
    return rgb, ir


def reliability(rows: int, seed: int = 0) -> Tensor:
    return torch.rand(2, rows, generator=cases.rng(seed)).cuda()


def found(record: Conflicts) -> Side:
    return [record.cosine, record.gap, record.mask, record.strength]


@pytest.mark.parametrize("two_launches", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", cases.AWKWARD)
def test_correction_agrees_on_awkward_inputs(
    name: str, dtype: torch.dtype, two_launches: bool
) -> None:
    rgb, ir = ([on_gpu(x, dtype) for x in side] for side in cases.AWKWARD[name])
    compare(Native(two_launches=two_launches), rgb, ir)


@pytest.mark.parametrize("identify", ["dual", "cosine"])
@pytest.mark.parametrize("resolve", ["blend", "project"])
def test_correction_agrees_under_every_option(identify: Identify, resolve: Resolve) -> None:
    rgb, ir = ([on_gpu(x) for x in side] for side in cases.AWKWARD["several layers"])
    compare(Native(), rgb, ir, options=Options(identify, resolve))


@pytest.mark.parametrize("two_launches", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_correction_agrees_on_many_layers(dtype: torch.dtype, two_launches: bool) -> None:
    rows, close = compare(Native(two_launches=two_launches), *many_layers(dtype))
    assert close <= rows / 1000


@pytest.mark.parametrize("scale", [1e-25, 1e19, 1e30])
def test_squares_neither_vanish_nor_overflow(scale: float) -> None:
    rgb, ir = ([on_gpu(x) for x in side] for side in cases.twins(64, 1500, scale=scale))
    compare(Native(), rgb, ir)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_layer_with_inf_or_nan_is_left_untouched(bad: float) -> None:
    rgb, ir = ([on_gpu(x[0]) for _ in range(2)] for x in cases.twins(40, 37, agreement=-0.8))
    rgb[0][2, 36] = bad
    compare(Native(), rgb, ir)
    new_rgb, new_ir, record = corrected(Native(), rgb, ir, reliability(80), Options())
    assert torch.equal(bits(new_rgb[0]), bits(rgb[0]))
    assert torch.equal(bits(new_ir[0]), bits(ir[0]))
    assert record.cosine[:40].isnan().all()
    assert record.mask[:40].sum() == 0 < record.mask[40:].sum()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("history", [None, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", [*cases.AWKWARD, "many layers"])
def test_observation_agrees(name: str, history: torch.dtype | None, dtype: torch.dtype) -> None:
    if name == "many layers":
        rgb, ir = many_layers(dtype)
    else:
        rgb, ir = ([on_gpu(x, dtype) for x in side] for side in cases.AWKWARD[name])
    mean = tuple([0.5 * on_gpu(x, history) for x in side] for side in (ir, rgb))
    compare_observation(Native(), rgb, ir, (clone(ir), clone(rgb)), mean if history else None)


def test_dots_of_the_observation_give_the_same_correction() -> None:
    rgb, ir = many_layers()
    bucket = bucket_of(rgb, ir)
    none: list[None] = [None] * len(rgb)
    dots = Native().observe_(bucket, (none, none), None).twin_dots
    r = reliability(bucket.layout.rows)
    new_rgb, new_ir, record = corrected(Native(), rgb, ir, r, Options())
    same = Native().correct_(bucket, r, Options(), dots)
    pairs = zip(
        [*rgb, *ir, *found(same)], [*new_rgb, *new_ir, *found(record)], strict=True
    )  # fmt: skip
    assert all(torch.equal(a, b) for a, b in pairs)
    assert record.count() > 0


def test_a_hundred_runs_give_the_same_bits() -> None:
    """One launch or two; whatever blocks did what."""
    rgb, ir = many_layers()
    work = clone(rgb), clone(ir)
    bucket = bucket_of(*work)
    r = reliability(bucket.layout.rows)
    first: Side = []
    for n in range(100):
        for new, old in zip(work[0] + work[1], rgb + ir, strict=True):
            new.copy_(old)
        record = Native(two_launches=n == 99).correct_(bucket, r, Options())
        results = [*work[0], *work[1], *found(record)]
        first = first or [x.clone() for x in results]
        assert all(torch.equal(a, b) for a, b in zip(results, first, strict=True))


def test_gradients_that_moved_are_read_where_they_are() -> None:
    rgb, ir = many_layers()
    layout = Layout.of([len(g) for g in rgb])
    buckets = Buckets(layout, (0,) * len(rgb))
    r = reliability(layout.rows)
    expected = corrected(Native(), rgb, ir, r, Options())
    kept = []
    for _ in range(3):
        kept.append((clone(rgb), clone(ir)))  # the old ones live on: these lie elsewhere
        bucket = buckets.bucket(*kept[-1], torch.device("cuda", torch.cuda.current_device()))
        record = Native().correct_(bucket, r, Options())
        results = [*kept[-1][0], *kept[-1][1], *found(record)]
        pairs = zip(results, [*expected[0], *expected[1], *found(expected[2])], strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


def test_the_current_stream_is_used() -> None:
    """Gradients that a busy stream has yet to write are corrected after it wrote them."""
    rgb, ir = many_layers()
    r = reliability(sum(map(len, rgb)))
    expected = corrected(Native(), rgb, ir, r, Options())
    late = [torch.zeros_like(x) for x in rgb], [torch.zeros_like(x) for x in ir]
    bucket = bucket_of(*late)
    Native().correct_(bucket, r, Options())
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)
        for new, old in zip(late[0] + late[1], rgb + ir, strict=True):
            new.copy_(old)
        record = Native().correct_(bucket, r, Options())
    stream.synchronize()
    results = [*late[0], *late[1], *found(record)]
    pairs = zip(results, [*expected[0], *expected[1], *found(expected[2])], strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@contextmanager
def nothing_waits() -> Iterator[None]:
    """What is called inside must return while the device is still busy with what came before."""
    torch.cuda.synchronize()
    done = torch.cuda.Event()
    torch.cuda._sleep(2_000_000_000)  # about a second
    done.record()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert not done.query(), "the call waited for the device"
    torch.cuda.synchronize()


def test_a_call_does_not_wait_for_the_device() -> None:
    rgb, ir = many_layers()
    bucket = bucket_of(rgb, ir)
    r = reliability(bucket.layout.rows)
    mean = clone(ir), clone(rgb)
    history = History(mean, torch.full((2, bucket.layout.rows), 0.1, device="cuda").double())
    for guard in (None, nothing_waits):  # the first time, kernels are loaded
        with guard() if guard else torch.no_grad():
            dots = Native().observe_(bucket, (ir, rgb), history).twin_dots
            Native().correct_(bucket, r, Options(), dots)
            Native().correct_(bucket, r, Options())


def test_a_cuda_graph_replays_both_halves_of_a_step() -> None:
    rgb, ir = many_layers()
    work, mean = (clone(rgb), clone(ir)), (clone(ir), clone(rgb))
    bucket = bucket_of(*work)
    rows = bucket.layout.rows
    r, w = reliability(rows), torch.full((2, rows), 0.1, device="cuda").double()

    def step() -> list[Tensor]:
        sums = Native().observe_(bucket, work, History(mean, w))
        record = Native().correct_(bucket, r, Options())
        assert sums.twin_dots is not None
        return [sums.dot, sums.deviation, sums.twin_dots, *found(record), *work[0], *work[1]]

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        step()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = step()
    for n in range(3):
        outcomes = []
        for run in (graph.replay, step):
            for new, old in zip(work[0] + work[1] + mean[0] + mean[1], rgb + ir + ir + rgb,
                                strict=True):  # fmt: skip
                new.copy_(old * (n + 1))
            output = run() or results
            outcomes.append([x.clone() for x in output + mean[0] + mean[1]])
        assert all(torch.equal(a, b) for a, b in zip(*outcomes, strict=True))


def test_more_elements_than_32_bits_count() -> None:
    """Three rows of 2**30: 6 GiB a side in bfloat16."""
    if torch.cuda.mem_get_info()[0] < 24 << 30:
        pytest.skip("needs 24 GiB of free device memory")
    n = 1 << 30
    generator = torch.Generator("cuda").manual_seed(0)
    rgb, ir = (torch.empty(3, n, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    for c in range(3):
        rgb[c].normal_(generator=generator)
        ir[c].normal_(generator=generator).add_(rgb[c], alpha=-0.5)
    pieces = [slice(at, at + (1 << 26)) for at in range(0, n, 1 << 26)]
    dot = sum(rgb[2, p].double() @ ir[2, p].double() for p in pieces)
    strong = sum(rgb[2, p].double().square().sum() for p in pieces)
    weak_tail, strong_tail = ir[2, -100_000:].double(), rgb[2, -100_000:].double()
    before = rgb[:, -100_000:].clone()
    r = torch.tensor([[0.9, 0.9, 0.9], [0.1, 0.2, 0.3]], device="cuda")
    record = Native().correct_(bucket_of([rgb], [ir]), r, Options("cosine"))
    assert record.mask.all()
    lam = torch.sigmoid((r[0, 2].double() - r[1, 2].double()) / r[:, 2].double().sum())
    expected = (1 - lam) * (weak_tail - dot / strong * strong_tail) + lam * strong_tail
    error = ir[2, -100_000:].double() - expected
    assert error.norm() <= RESULT[torch.bfloat16] * expected.norm()
    assert torch.equal(rgb[:, -100_000:], before)


def test_a_device_that_is_not_the_current_one() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    rgb, ir = ([x.to("cuda:1") for x in side] for side in cases.twins(16, 72))
    with torch.cuda.device(0):
        compare(Native(), rgb, ir)
        assert torch.cuda.current_device() == 0
