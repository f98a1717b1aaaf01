"""The Triton kernels with blocks that take turns in random order: always the same bits.

In Triton's interpreter, on small units and rows in several pieces; as many blocks run at a time as
there are, or fewer. What the compiler makes of the kernels is seen in `test_compile`.
"""

from __future__ import annotations

import pytest
import torch

from ragrad_ext.backends.triton import plan, queues
from ragrad_ext.backends.triton import verb as triton_verb
from ragrad_ext.backends.triton.backend import Triton
from ragrad_ext.backends.triton.tuning import Tuning
from ragrad_ext.rules import RaGradRule

from ...lib import cases
from ...lib.interleave import Schedule, interleaved
from ...lib.parity import Side, bucket_of, clone, corrected, observed
from ...lib.triton_cases import SLOW, compare

pytest.importorskip("triton")
pytestmark = pytest.mark.interpreted
LIMITS = plan.Limits(tile_bytes=4096, unit_bytes=2048, row_pieces=64, share=1)


@pytest.fixture(autouse=True)
def _seven_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """And a queue that has every APPLY as early as it may be, so that many blocks must wait."""
    tuned = Tuning(LIMITS, correct_blocks=1, observe_blocks=1)
    monkeypatch.setattr(triton_verb, "device_of", lambda device: (tuned, 7))
    queue = queues.queue
    monkeypatch.setattr(queues, "queue", lambda cuts, grid, *rest: queue(cuts, 0, *rest))


def layers() -> tuple[Side, Side]:
    """Short rows, rows in several pieces, a layer of one row, rows that are no runs."""
    pairs = [cases.twins(*s, agreement=-0.5) for s in ((14, 90), (2, 900), (1, 8), (9, 20))]
    rgb, ir = ([p[m][0] for p in pairs] for m in (0, 1))
    a, b = cases.twins(6, 5, 3, agreement=-0.5)
    return [*rgb, cases.transposed(a[0])], ir + b


def reliability(rgb: Side) -> torch.Tensor:
    return torch.rand(2, sum(map(len, rgb)), generator=cases.rng(1))


@pytest.mark.slow
@pytest.mark.parametrize(
    "resident",
    [2, pytest.param(1, marks=SLOW), pytest.param(7, marks=SLOW)],
)
def test_a_correction_gives_the_same_bits(resident: int) -> None:
    rgb, ir = layers()
    r = reliability(rgb)
    with interleaved(Schedule(1, seed=0)):  # one after the other
        alone = corrected(Triton(), rgb, ir, r, RaGradRule())
    assert alone[2].count() > 0
    expected = [*alone[0], *alone[1], alone[2].mask, alone[2].cosine, alone[2].strength]
    new_rgb, new_ir = clone(rgb), clone(ir)
    bucket = bucket_of(new_rgb, new_ir)  # one memory: every launch leaves it ready
    for seed in range(3):
        # What this leaves in memory is wrong for the call after it, should that use it too early.
        Triton().decide_and_apply_(bucket, r.flip(0), RaGradRule("cosine"))
        for new, old in zip(new_rgb + new_ir, rgb + ir, strict=True):
            new.copy_(old)
        schedule = Schedule(resident, seed)
        with interleaved(schedule):
            record = Triton().decide_and_apply_(bucket, r, RaGradRule())
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
    """And the schedule finds it."""
    right = queues.queue

    def apply_first(*args: object) -> object:
        queue = right(*args)  # type: ignore[arg-type]
        return queue[(queue[:, 0] % queues.KINDS != queues.APPLY).argsort(kind="stable")]

    monkeypatch.setattr(queues, "queue", apply_first)
    rgb, ir = layers()
    with interleaved(Schedule(3, seed=0)), pytest.raises(Exception, match="wait for ever"):
        Triton().decide_and_apply_(bucket_of(clone(rgb), clone(ir)), reliability(rgb), RaGradRule())
