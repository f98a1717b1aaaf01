"""The Triton kernels with blocks that take turns by lot: the same bits, whoever did what, when.

In Triton's interpreter, on small units and rows in several pieces; as many blocks run at a time as
there are, or fewer. What the compiler makes of the kernels is seen in `test_triton_compile`.
"""

from __future__ import annotations

import pytest
import torch

from ragrad_ext.backends.triton import launch as triton_launch
from ragrad_ext.backends.triton import plan
from ragrad_ext.backends.triton.backend import Triton
from ragrad_ext.backends.triton.tuning import Tuning
from ragrad_ext.rows.bucket import Bucket
from ragrad_ext.rules.ragrad import Options

from ...lib import cases
from ...lib.interleave import Schedule, interleaved
from ...lib.parity import Side, bucket_of, clone, corrected, observed
from ...lib.triton_cases import SLOW, compare

pytest.importorskip("triton")
pytestmark = pytest.mark.interpreted
LIMITS = plan.Limits(tile_bytes=4096, unit_bytes=2048, row_pieces=64, share=1)


@pytest.fixture(autouse=True)
def _seven_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """And a queue that has every blend as early as may be, so that many a block must wait."""
    tuned = Tuning(LIMITS, correct_blocks=1, observe_blocks=1)
    monkeypatch.setattr(triton_launch, "device_of", lambda device: (tuned, 7))
    queue = plan.queue
    monkeypatch.setattr(plan, "queue", lambda cuts, grid, *rest: queue(cuts, 0, *rest))


def layers() -> tuple[Side, Side]:
    """Short rows, rows in several pieces, a layer of one row, rows that are no runs."""
    pairs = [cases.twins(*s, agreement=-0.5) for s in ((14, 90), (2, 900), (1, 8), (9, 20))]
    rgb, ir = ([p[m][0] for p in pairs] for m in (0, 1))
    a, b = cases.twins(6, 5, 3, agreement=-0.5)
    return [*rgb, cases.transposed(a[0])], ir + b


def reliability(rgb: Side) -> torch.Tensor:
    return torch.rand(2, sum(map(len, rgb)), generator=cases.rng(1))


def forget_decisions(bucket: Bucket) -> None:
    """Of the last call: one that is used before it is made anew shall not be right by chance."""
    for work in bucket.memory.values():
        work.conflicts.zero_()
        work.scales.fill_(7)
        for group in work.groups:
            group.counters[2 + 2 * len(group.layers) :].zero_()


@pytest.mark.slow
@pytest.mark.parametrize(
    "resident",
    [2, pytest.param(1, marks=SLOW), pytest.param(7, marks=SLOW)],
)
def test_a_correction_gives_the_same_bits(resident: int) -> None:
    rgb, ir = layers()
    r = reliability(rgb)
    with interleaved(Schedule(1, seed=0)):  # one after the other
        alone = corrected(Triton(), rgb, ir, r, Options())
    assert alone[2].count() > 0
    expected = [*alone[0], *alone[1], alone[2].mask, alone[2].cosine, alone[2].strength]
    new_rgb, new_ir = clone(rgb), clone(ir)
    bucket = bucket_of(new_rgb, new_ir)  # one workspace: every launch leaves it ready
    for seed in range(3):
        for new, old in zip(new_rgb + new_ir, rgb + ir, strict=True):
            new.copy_(old)
        forget_decisions(bucket)
        schedule = Schedule(resident, seed)
        with interleaved(schedule):
            record = Triton(two_launches=seed == 2).correct_(bucket, r, Options())
        results = [*new_rgb, *new_ir, record.mask, record.cosine, record.strength]
        assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))
        assert len(schedule.blocks) > 1, "only one block took part"


def test_an_interleaved_correction_agrees_with_the_reference() -> None:
    with interleaved(Schedule(4, seed=5)):
        compare(Triton(), *layers())


@pytest.mark.slow
def test_an_observation_gives_the_same_bits() -> None:
    rgb, ir = layers()
    results = []
    for seed in range(2):
        mean = clone(ir), clone(rgb)
        with interleaved(Schedule(3, seed)):
            sums = observed(Triton(), rgb, ir, (ir, rgb), mean, 0.25)
        results.append([*sums, *mean[0], *mean[1]])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_a_queue_in_the_wrong_order_deadlocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """And is found out: the schedule would tell."""
    right = plan.queue

    def blends_first(*args: object) -> object:
        queue = right(*args)  # type: ignore[arg-type]
        return queue[(queue[:, 0] % plan.KINDS != plan.BLEND).argsort(kind="stable")]

    monkeypatch.setattr(plan, "queue", blends_first)
    rgb, ir = layers()
    with interleaved(Schedule(3, seed=0)), pytest.raises(Exception, match="wait for ever"):
        Triton().correct_(bucket_of(clone(rgb), clone(ir)), reliability(rgb), Options())
