"""A few of the cases of `kernels`, to compare two commits.

pytest benchmarks --benchmark-only --benchmark-autosave
pytest benchmarks --benchmark-only --benchmark-compare
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from . import kernels, shapes
from .kernels import Case
from .twins import Twins

CASES = (
    Case("correct", "resnet50", "float32", 0.1),
    Case("correct", "resnet50", "bfloat16", 0.1),
    Case("step", "resnet50", "float32", 0.1),
    Case("correct", "tiny_300", "float32", 0.0),
)
LEFT_OUT = ("loop", "compiled", "reference")  # seconds a call, or a minute before the first
DEVICES = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)


def parameters() -> Iterator[object]:
    for device in DEVICES:
        for case in CASES:
            for name in kernels.names(case.kind, case.shape, torch.device(device)):
                if name not in LEFT_OUT:
                    label = "-".join([device, *map(str, case), name])
                    yield pytest.param(device, case, name, id=label)


@lru_cache(maxsize=1)  # the cases come one after another
def twins(device: str, case: Case) -> Twins:
    dtype = kernels.DTYPES[case.dtype]
    return Twins(shapes.SHAPES[case.shape](), case.conflicts, dtype, device)


@pytest.mark.parametrize(("device", "case", "name"), [*parameters()])
def test_kernels(benchmark: BenchmarkFixture, device: str, case: Case, name: str) -> None:
    rival = kernels.contender(case.kind, name, twins(device, case))

    def work() -> None:
        rival.work()
        if device == "cuda":
            torch.cuda.synchronize()

    benchmark.group = " ".join([device, *map(str, case)])
    benchmark.pedantic(work, setup=rival.restore_, rounds=15, warmup_rounds=2)
