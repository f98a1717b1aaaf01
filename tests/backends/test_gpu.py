"""The kernels on a CUDA device: parity, order, streams, graphs, and nothing that waits."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from ragrad_ext import Reliability, Repa, correct_
from ragrad_ext.backends import Backend, History, RowSums, Sensitivity
from ragrad_ext.backends.native import Native
from ragrad_ext.backends.triton.backend import Triton
from ragrad_ext.repa import Scope
from ragrad_ext.rows.bucket import Bucket, Buckets, Layout
from ragrad_ext.rows.conflicts import Conflicts
from ragrad_ext.rules.ragrad import Identify, Options, Resolve

from ..lib import cases
from ..lib.parity import Side, bits, bucket_of, clone, compare, compare_observation, corrected
from ..lib.tolerances import RESULT

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
BACKENDS: dict[str, Backend] = {"triton": Triton(), "native": Native()}
TWO_LAUNCHES: dict[str, Backend] = {
    "triton in two launches": Triton(two_launches=True),
    "native in two launches": Native(two_launches=True),
}
pytestmark = pytest.mark.gpu


def missing(backend: Backend) -> str | None:
    """Why the kernels cannot run here; None if they can."""
    if not torch.cuda.is_available():
        return "no CUDA device that torch can use"
    reason = backend.unusable(torch.device("cuda", torch.cuda.current_device()))
    return reason and f"{backend.name}: {reason}"


def each(backends: dict[str, Backend]) -> pytest.MarkDecorator:
    """A test for every one of these backends that works here."""
    parameters = []
    for name, backend in backends.items():
        reason = missing(backend)
        skip = pytest.mark.skipif(reason is not None, reason=str(reason))
        parameters.append(pytest.param(backend, id=name, marks=skip))
    return pytest.mark.parametrize("backend", parameters)


EACH, EVERY = each(BACKENDS), each(BACKENDS | TWO_LAUNCHES)


def on_gpu(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """A copy with the same strides, gaps between rows included."""
    room = sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True)) + 1
    memory = torch.full((room,), 7.0, dtype=dtype or x.dtype, device="cuda")
    return memory.as_strided(x.shape, x.stride()).copy_(x)


def many_layers(dtype: torch.dtype = torch.float32, short: int = 400) -> tuple[Side, Side]:
    """Rows short and long, odd and even, in more layers than one launch of CUDA holds."""
    shapes = [(64, 3, 7, 7), (64, 64), (256, 576), (128, 4608), (3, 70001), (7, 1), (33, 9)]
    rgb, ir = [], []
    for l, shape in enumerate(shapes + [(16, 40 + n) for n in range(short)]):
        a, b = cases.twins(*shape, seed=l, agreement=-0.5)
        rgb.append(on_gpu(a[0], dtype))
        ir.append(on_gpu(b[0], dtype))
    return rgb, ir


def reliability(rows: int, seed: int = 0) -> Tensor:
    return torch.rand(2, rows, generator=cases.rng(seed)).cuda()


def sensitivity(rows: int) -> Sensitivity:
    """Of a second step."""
    score = torch.rand(2, rows, generator=cases.rng(7), dtype=torch.float64).cuda()
    return Sensitivity(score, torch.ones_like(score), 0.9)


def concluded(
    backend: Backend, bucket: Bucket, sums: RowSums, state: Sensitivity
) -> tuple[Side, Conflicts]:
    """R, S and the steps, and the record; Eq. 3 pools the first layers, and the others."""
    groups = [sum(part) for part in (bucket.layout.channels[:3], bucket.layout.channels[3:])]
    r, record = backend.rate_and_correct_(
        bucket, sums, -sums.dot, state, groups, Options(), by_sensitivity=True
    )
    return [r, state.score, state.steps], record


def found(record: Conflicts) -> Side:
    return [record.cosine, record.gap, record.mask, record.strength]


def everything(rgb: Side, ir: Side, record: Conflicts) -> Side:
    return [*rgb, *ir, *found(record)]


def equal(a: Side, b: Side) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@EVERY
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", cases.AWKWARD)
def test_correction_agrees_on_awkward_inputs(
    backend: Backend, name: str, dtype: torch.dtype
) -> None:
    rgb, ir = ([on_gpu(x, dtype) for x in side] for side in cases.AWKWARD[name])
    compare(backend, rgb, ir)


@EVERY
@pytest.mark.parametrize("identify", ["dual", "cosine"])
@pytest.mark.parametrize("resolve", ["blend", "project"])
def test_correction_agrees_under_every_option(
    backend: Backend, identify: Identify, resolve: Resolve
) -> None:
    rgb, ir = ([on_gpu(x) for x in side] for side in cases.AWKWARD["several layers"])
    compare(backend, rgb, ir, options=Options(identify, resolve))


@EVERY
@pytest.mark.parametrize("dtype", DTYPES)
def test_correction_agrees_on_many_layers(backend: Backend, dtype: torch.dtype) -> None:
    rows, close = compare(backend, *many_layers(dtype))
    assert close <= rows / 1000


@EACH
@pytest.mark.parametrize("scale", [1e-25, 1e19, 1e30])
def test_squares_neither_vanish_nor_overflow(backend: Backend, scale: float) -> None:
    rgb, ir = ([on_gpu(x) for x in side] for side in cases.twins(64, 1500, scale=scale))
    compare(backend, rgb, ir)


@EVERY
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_layer_with_inf_or_nan_is_left_untouched(backend: Backend, bad: float) -> None:
    rgb, ir = ([on_gpu(x[0]) for _ in range(2)] for x in cases.twins(40, 37, agreement=-0.8))
    rgb[0][2, 36] = bad
    compare(backend, rgb, ir)
    new_rgb, new_ir, record = corrected(backend, rgb, ir, reliability(80), Options())
    assert torch.equal(bits(new_rgb[0]), bits(rgb[0]))
    assert torch.equal(bits(new_ir[0]), bits(ir[0]))
    assert record.cosine[:40].isnan().all()
    assert record.mask[:40].sum() == 0 < record.mask[40:].sum()


@EACH
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("history", [None, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", [*cases.AWKWARD, "many layers"])
def test_observation_agrees(
    backend: Backend, name: str, history: torch.dtype | None, dtype: torch.dtype
) -> None:
    if name == "many layers":
        rgb, ir = many_layers(dtype)
    else:
        rgb, ir = ([on_gpu(x, dtype) for x in side] for side in cases.AWKWARD[name])
    mean = tuple([0.5 * on_gpu(x, history) for x in side] for side in (ir, rgb))
    compare_observation(backend, rgb, ir, (clone(ir), clone(rgb)), mean if history else None)


@EVERY
def test_dots_of_the_observation_give_the_same_correction(backend: Backend) -> None:
    rgb, ir = many_layers()
    bucket = bucket_of(rgb, ir)
    none: list[None] = [None] * len(rgb)
    dots = backend.observe_(bucket, (none, none), None).twin_dots
    r = reliability(bucket.layout.rows)
    expected = corrected(backend, rgb, ir, r, Options())
    record = backend.correct_(bucket, r, Options(), dots)
    assert equal(everything(rgb, ir, record), everything(*expected))
    assert record.count() > 0


@pytest.mark.parametrize("rates", [False, True])
@pytest.mark.parametrize("name", BACKENDS)
def test_a_thousand_runs_give_the_same_bits(name: str, rates: bool) -> None:
    """Whatever blocks did what; in one launch or, every tenth time, in two."""
    one, two = BACKENDS[name], TWO_LAUNCHES[f"{name} in two launches"]
    if reason := missing(one):
        pytest.skip(reason)
    rgb, ir = many_layers(short=40)
    old = rgb + ir
    work = clone(rgb), clone(ir)
    new = work[0] + work[1]
    bucket = bucket_of(*work)
    r = reliability(bucket.layout.rows)
    sums = one.observe_(bucket, (clone(ir), clone(rgb)), None)
    sums = sums._replace(deviation=r.double())
    first: Tensor | None = None
    for n in range(1000):
        torch._foreach_copy_(new, old)
        backend = two if n % 10 == 9 else one
        rated: Side = []
        if rates:
            rated, record = concluded(backend, bucket, sums, sensitivity(bucket.layout.rows))
        else:
            record = backend.correct_(bucket, r, Options())
        flat = [x.float().view(-1) for x in [*new, *found(record), *rated]]
        results = torch.cat(flat).view(torch.int32)
        first = results if first is None else first
        assert torch.equal(results, first), f"run {n}"
    assert record.count() > 0


@EACH
def test_gradients_that_moved_are_read_where_they_are(backend: Backend) -> None:
    rgb, ir = many_layers()
    layout = Layout.of([len(g) for g in rgb])
    buckets = Buckets(layout, (0,) * len(rgb))
    r = reliability(layout.rows)
    expected = everything(*corrected(backend, rgb, ir, r, Options()))
    kept = []
    for _ in range(3):
        kept.append((clone(rgb), clone(ir)))  # the old ones live on: these lie elsewhere
        bucket = buckets.bucket(*kept[-1], torch.device("cuda", torch.cuda.current_device()))
        record = backend.correct_(bucket, r, Options())
        assert equal(everything(*kept[-1], record), expected)


@EACH
def test_the_current_stream_is_used(backend: Backend) -> None:
    """Gradients that a busy stream has yet to write are corrected after it wrote them."""
    rgb, ir = many_layers()
    r = reliability(sum(map(len, rgb)))
    expected = everything(*corrected(backend, rgb, ir, r, Options()))
    late = [torch.zeros_like(x) for x in rgb], [torch.zeros_like(x) for x in ir]
    bucket = bucket_of(*late)
    backend.correct_(bucket, r, Options())
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)
        for new, old in zip(late[0] + late[1], rgb + ir, strict=True):
            new.copy_(old)
        record = backend.correct_(bucket, r, Options())
    stream.synchronize()
    assert equal(everything(*late, record), expected)


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


@EVERY
def test_a_call_does_not_wait_for_the_device(backend: Backend) -> None:
    """Nor does it where the gradients have moved since the last one."""
    sides = [many_layers() for _ in range(2)]
    layout = Layout.of([len(g) for g in sides[0][0]])
    buckets = Buckets(layout, (0,) * len(layout.channels))
    device = torch.device("cuda", torch.cuda.current_device())
    r = reliability(layout.rows)
    theta, mean = (sides[0][1], sides[0][0]), (clone(sides[0][1]), clone(sides[0][0]))
    history = History(mean, torch.full((2, layout.rows), 0.1, device="cuda").double())
    state = sensitivity(layout.rows)
    for guard, (rgb, ir) in zip((None, nothing_waits), sides, strict=True):
        with guard() if guard else torch.no_grad():  # the first time, kernels are loaded
            bucket = buckets.bucket(rgb, ir, device)
            sums = backend.observe_(bucket, theta, history)
            concluded(backend, bucket, sums, state)
            backend.correct_(bucket, r, Options(), sums.twin_dots)
            backend.correct_(bucket, r, Options())


@EVERY
@pytest.mark.parametrize("rates", [False, True])
def test_a_cuda_graph_replays_both_halves_of_a_step(backend: Backend, rates: bool) -> None:
    """On the memory it was captured with, wherever the gradients of other steps lie."""
    rgb, ir = many_layers()
    layout = Layout.of([len(g) for g in rgb])
    buckets, device = Buckets(layout, (0,) * len(rgb)), rgb[0].device
    work, mean, elsewhere = ((clone(rgb), clone(ir)) for _ in range(3))
    r, w = reliability(layout.rows), torch.full((2, layout.rows), 0.1, device="cuda").double()
    state, before = sensitivity(layout.rows), sensitivity(layout.rows)

    def step(grads: tuple[Side, Side] = work) -> list[Tensor]:
        bucket = buckets.bucket(*grads, device)
        sums = backend.observe_(bucket, grads, History(mean, w))
        rated: Side = []
        if rates:
            rated, record = concluded(backend, bucket, sums, state)
        else:
            record = backend.correct_(bucket, r, Options())
        assert sums.twin_dots is not None
        outputs = [sums.dot, sums.deviation, sums.twin_dots, *rated]
        return outputs + everything(*grads, record)

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        step()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = step()
    used, new = [*work[0], *work[1], *mean[0], *mean[1]], [*rgb, *ir, *ir, *rgb]
    used += state[:2]
    for n in range(3):
        outcomes = []
        for run in (graph.replay, step):
            step(elsewhere)
            torch._foreach_copy_(used, [x * (n + 1) for x in new] + list(before[:2]))
            output = run() or results
            outcomes.append([x.clone() for x in [*output, *mean[0], *mean[1]]])
        assert equal(*outcomes)


@EACH
def test_compiled_code_gives_the_same_bits(backend: Backend) -> None:
    rgb, ir = many_layers(short=0)
    parts = reliability(sum(map(len, rgb))).split([len(x) for x in rgb], 1)
    given = Reliability([p[0] for p in parts], [p[1] for p in parts])

    def step(rgb: Side, ir: Side) -> tuple[Tensor, ...]:
        record = correct_([*rgb[:2], *(g * 2 for g in rgb[2:])], ir, given, backend=backend.name)
        return tuple(found(record))

    eager, compiled = (clone(rgb), clone(ir)), (clone(rgb), clone(ir))
    true = step(*eager)
    new = torch.compile(step, fullgraph=True)(*compiled)
    assert true[2].any()
    assert equal([*true, *eager[0], *eager[1]], [*new, *compiled[0], *compiled[1]])


@EACH
@pytest.mark.parametrize("scope", ["model", "layer"])
def test_a_whole_step_agrees_with_the_reference(backend: Backend, scope: Scope) -> None:
    rgb, ir = many_layers(short=40)
    outcomes = []
    for name in (backend.name, "reference"):
        stats = Repa(clone(ir), clone(rgb), scope=scope)
        for t in range(3):
            work = [g * (1 + t) for g in rgb], [g - t * 1e-3 for g in ir]
            record = correct_(*work, stats, backend=name)
        outcomes.append((record.mask, work[0] + work[1]))
    (mine_mask, mine), (true_mask, true) = outcomes
    assert torch.equal(mine_mask, true_mask)
    assert true_mask.any()
    for a, b in zip(mine, true, strict=True):
        assert (a.double() - b.double()).norm() <= RESULT[a.dtype] * b.double().norm()


@EACH
def test_more_elements_than_32_bits_count(backend: Backend) -> None:
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
    record = backend.correct_(bucket_of([rgb], [ir]), r, Options("cosine"))
    assert record.mask.all()
    lam = torch.sigmoid((r[0, 2].double() - r[1, 2].double()) / r[:, 2].double().sum())
    expected = (1 - lam) * (weak_tail - dot / strong * strong_tail) + lam * strong_tail
    error = ir[2, -100_000:].double() - expected
    assert error.norm() <= RESULT[torch.bfloat16] * expected.norm()
    assert torch.equal(rgb[:, -100_000:], before)


@EACH
def test_a_device_that_is_not_the_current_one(backend: Backend) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    rgb, ir = ([x.to("cuda:1") for x in side] for side in cases.twins(16, 72))
    with torch.cuda.device(0):
        compare(backend, rgb, ir)
        assert torch.cuda.current_device() == 0
