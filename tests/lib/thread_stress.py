"""Many threads on small and large layers; run under a thread sanitizer by test_sanitizers.py.

With the argument ``race``, two calls correct the same memory at once: what must be reported.
"""

from __future__ import annotations

import sys
import threading

import torch

from ragrad_ext import Reliability, Repa, compiled, correct_
from ragrad_ext.rules import RaGradRule

SHAPES = ([(64, 2000)] * 40, [(3, 600_000)] * 3, [(512, 4608)] * 2 + [(8, 8)] * 30)


def twins(shapes: list[tuple[int, int]]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    rgb = [torch.randn(s) for s in shapes]
    return rgb, [torch.randn(g.shape) - 0.2 * g for g in rgb]


def given(shapes: list[tuple[int, int]]) -> Reliability:
    return Reliability(*([torch.rand(s[0]) for s in shapes] for _ in range(2)))


def stress() -> None:
    for shapes in SHAPES:
        rgb, ir = twins(shapes)
        stats = given(shapes), Repa(*twins(shapes))
        for _ in range(4):
            for stat in stats:
                new = [g.clone() for g in rgb], [g.clone() for g in ir]
                record = correct_(*new, stat, backend="native")
        print(record.count(), "conflicts")


def race() -> None:
    shapes = [(64, 5_000)]
    rounds = [twins(shapes) for _ in range(3)]
    meet = threading.Barrier(2)  # or one might be done before the other begins

    def work(stats: Reliability) -> None:
        for rgb, ir in rounds:
            meet.wait()
            correct_(rgb, ir, stats, backend="native", rule=RaGradRule(identify="cosine"))

    threads = [threading.Thread(target=work, args=(given(shapes),)) for _ in range(2)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()


torch.manual_seed(0)
torch.set_num_threads(4)
print(compiled.module.__file__)
race() if sys.argv[1:] == ["race"] else stress()
