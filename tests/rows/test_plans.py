"""What is kept from call to call for callers that keep nothing themselves."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import Tensor

from ragrad_ext import Reliability, compiled, correct_
from ragrad_ext.rows import bucket as bucket_module
from ragrad_ext.rows.bucket import Buckets
from ragrad_ext.rows.layout import Layout
from ragrad_ext.rows.plans import buckets_of

from ..lib import cases

SHAPES = ((7, 3), (5, 2, 2))


def grads(seed: int) -> tuple[list[Tensor], list[Tensor]]:
    sides = zip(
        *(cases.twins(*shape, seed=seed + i) for i, shape in enumerate(SHAPES)), strict=True
    )
    rgb, ir = ([x for (x,) in side] for side in sides)
    return rgb, ir


def made_anew() -> Reliability:
    return Reliability(*([torch.rand(s[0]) for s in SHAPES] for _ in range(2)))


@pytest.mark.skipif(compiled.module is None, reason="only a compiled table recognises gradients")
def test_a_reliability_made_in_every_step_costs_no_new_plan(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The gradients are checked in the first step, and recognised in the others."""
    checked = []
    check = bucket_module.check_gradients
    monkeypatch.setattr(
        bucket_module, "check_gradients", lambda *operands: (checked.append(1), check(*operands))
    )
    for step in range(5):
        correct_(*grads(step), made_anew())
    for step in range(5):
        correct_(*grads(step), rule="pcgrad")  # the same plan, although no statistics are given
    assert len(checked) <= 1


def test_every_thread_has_its_own_plan() -> None:
    layout = Layout.of([s[0] for s in SHAPES])
    found: list[Buckets] = [buckets_of(layout, (0, 0)), buckets_of(layout, (0, 0))]
    thread = threading.Thread(target=lambda: found.append(buckets_of(layout, (0, 0))))
    thread.start()
    thread.join()
    assert found[0] is found[1]
    assert found[2] is not found[0]


def test_threads_that_correct_at_the_same_time_get_their_own_results() -> None:
    expected, results = {}, {}
    reliability = made_anew()

    def work(seed: int) -> None:
        mine = grads(seed)
        for _ in range(20):
            mine = grads(seed)
            correct_(*mine, reliability)
        results[seed] = mine

    for seed in range(4):
        rgb, ir = grads(seed)
        correct_(rgb, ir, reliability)
        expected[seed] = rgb, ir
    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed, (rgb, ir) in expected.items():
        for a, b in zip((*rgb, *ir), (*results[seed][0], *results[seed][1]), strict=True):
            assert torch.equal(a, b)
