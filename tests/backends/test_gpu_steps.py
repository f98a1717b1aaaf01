"""Steps on a CUDA device: order, streams, graphs, compiled code, and nothing that waits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from ragrad_ext import Reliability, Repa, correct_
from ragrad_ext.backends import Backend, History
from ragrad_ext.repa import Scope
from ragrad_ext.rows.bucket import Buckets
from ragrad_ext.rows.layout import Layout
from ragrad_ext.rules import RaGradRule
from ragrad_ext.rules.registry import RuleName

from ..lib.gpu_cases import (
    VERBS,
    correct_by,
    each_backend,
    equal,
    everything,
    found,
    given,
    many_layers,
    rated,
    reliability,
    sensitivity,
)
from ..lib.parity import Side, bucket_of, clone, corrected
from ..lib.tolerances import RESULT

EACH = each_backend()
pytestmark = pytest.mark.gpu


@EACH
def test_both_fused_verbs_give_the_same_correction(backend: Backend) -> None:
    """By a new R, from the sums of the observation, and by the same R given."""
    rgb, ir = many_layers()
    work = clone(rgb), clone(ir)
    bucket = bucket_of(*work)
    sums = backend.observe_(bucket, (clone(ir), clone(rgb)), None)
    (r, *_), record = rated(backend, bucket, sums, sensitivity(bucket.layout.rows))
    expected = everything(*corrected(backend, rgb, ir, r, RaGradRule()))
    assert equal(everything(*work, record), expected)
    assert record.count() > 0


@EACH
@pytest.mark.parametrize("verb", VERBS)
def test_a_thousand_runs_give_the_same_bits(backend: Backend, verb: str) -> None:
    """Whatever blocks did what."""
    rgb, ir = many_layers(short=40)
    old = rgb + ir
    work = clone(rgb), clone(ir)
    new = work[0] + work[1]
    bucket = bucket_of(*work)
    sums = backend.observe_(bucket, (clone(ir), clone(rgb)), None)
    sums = sums._replace(deviation=reliability(bucket.layout.rows).double())
    first: Tensor | None = None
    for n in range(1000):
        torch._foreach_copy_(new, old)
        outputs = correct_by(verb, backend, bucket, sums, given(bucket.layout.rows))
        results = torch.cat([x.float().view(-1) for x in [*new, *outputs]]).view(torch.int32)
        first = results if first is None else first
        assert torch.equal(results, first), f"run {n}"
    assert not equal(new, old)


@EACH
def test_gradients_that_moved_are_read_where_they_are(backend: Backend) -> None:
    rgb, ir = many_layers()
    layout = Layout.of([len(g) for g in rgb])
    buckets = Buckets(layout, (0,) * len(rgb))
    r = reliability(layout.rows)
    expected = everything(*corrected(backend, rgb, ir, r, RaGradRule()))
    kept = []
    for _ in range(3):
        kept.append((clone(rgb), clone(ir)))  # the old ones live on: these have other addresses
        bucket = buckets.bucket(*kept[-1], rgb[0].device)
        record = backend.decide_and_apply_(bucket, r, RaGradRule())
        assert equal(everything(*kept[-1], record), expected)


@EACH
def test_the_current_stream_is_used(backend: Backend) -> None:
    """Gradients that a busy stream has yet to write are corrected after it wrote them."""
    rgb, ir = many_layers()
    r = reliability(sum(map(len, rgb)))
    expected = everything(*corrected(backend, rgb, ir, r, RaGradRule()))
    late = [torch.zeros_like(x) for x in rgb], [torch.zeros_like(x) for x in ir]
    bucket = bucket_of(*late)
    backend.decide_and_apply_(bucket, r, RaGradRule())
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)
        for new, old in zip(late[0] + late[1], rgb + ir, strict=True):
            new.copy_(old)
        record = backend.decide_and_apply_(bucket, r, RaGradRule())
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


@EACH
def test_a_call_does_not_wait_for_the_device(backend: Backend) -> None:
    """Nor does it where the gradients have moved since the last one."""
    sides = [many_layers() for _ in range(2)]
    layout = Layout.of([len(g) for g in sides[0][0]])
    buckets = Buckets(layout, (0,) * len(layout.channels))
    theta, mean = (sides[0][1], sides[0][0]), (clone(sides[0][1]), clone(sides[0][0]))
    by = given(layout.rows)
    history = History(mean, torch.full_like(by.state.score, 0.1))
    for guard, (rgb, ir) in zip((None, nothing_waits), sides, strict=True):
        with guard() if guard else torch.no_grad():  # the first time, kernels are loaded
            bucket = buckets.bucket(rgb, ir, rgb[0].device)
            sums = backend.observe_(bucket, theta, history)
            for verb in VERBS:
                correct_by(verb, backend, bucket, sums, by)


@EACH
@pytest.mark.parametrize("verb", VERBS)
def test_a_cuda_graph_replays_both_halves_of_a_step(backend: Backend, verb: str) -> None:
    """On the memory it was captured with, wherever the gradients of other steps are."""
    rgb, ir = many_layers()
    layout = Layout.of([len(g) for g in rgb])
    buckets, device = Buckets(layout, (0,) * len(rgb)), rgb[0].device
    work, mean, elsewhere = ((clone(rgb), clone(ir)) for _ in range(3))
    by, before = given(layout.rows), sensitivity(layout.rows)
    history = History(mean, torch.full_like(before.score, 0.1))

    def step(grads: tuple[Side, Side] = work) -> list[Tensor]:
        bucket = buckets.bucket(*grads, device)
        sums = backend.observe_(bucket, grads, history)
        outputs = correct_by(verb, backend, bucket, sums, by)
        return [*sums, *outputs, *grads[0], *grads[1]]

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        step()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = step()
    used, new = [*work[0], *work[1], *mean[0], *mean[1]], [*rgb, *ir, *ir, *rgb]
    used += by.state[:2]
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
    stats = Reliability([p[0] for p in parts], [p[1] for p in parts])

    def step(rgb: Side, ir: Side) -> tuple[Tensor, ...]:
        record = correct_([*rgb[:2], *(g * 2 for g in rgb[2:])], ir, stats, backend=backend.name)
        return tuple(found(record))

    eager, compiled = (clone(rgb), clone(ir)), (clone(rgb), clone(ir))
    true = step(*eager)
    new = torch.compile(step, fullgraph=True)(*compiled)
    assert true[2].any()
    assert equal([*true, *eager[0], *eager[1]], [*new, *compiled[0], *compiled[1]])


@EACH
@pytest.mark.parametrize("rule", ["ragrad", "pcgrad", "imtl"])
@pytest.mark.parametrize("scope", ["model", "layer"])
def test_a_whole_step_agrees_with_the_reference(
    backend: Backend, scope: Scope, rule: RuleName
) -> None:
    rgb, ir = many_layers(short=40)
    outcomes = []
    for name in (backend.name, "reference"):
        stats = Repa(clone(ir), clone(rgb), scope=scope)
        for t in range(3):
            work = [g * (1 + t) for g in rgb], [g - t * 1e-3 for g in ir]
            record = correct_(*work, stats, rule=rule, backend=name)
        outcomes.append((record.mask, work[0] + work[1]))
    (mine_mask, mine), (true_mask, true) = outcomes
    assert torch.equal(mine_mask, true_mask)
    assert true_mask.any()
    for a, b in zip(mine, true, strict=True):
        assert (a.double() - b.double()).norm() <= RESULT[a.dtype] * b.double().norm()
