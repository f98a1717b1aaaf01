"""What the tests on a CUDA device share."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from ragrad_ext.backends import Backend, RowSums, Sensitivity
from ragrad_ext.backends.native import Native
from ragrad_ext.backends.triton.backend import Triton
from ragrad_ext.rows.bucket import Bucket
from ragrad_ext.rows.conflicts import Conflicts
from ragrad_ext.rules import RaGradRule

from . import cases
from .parity import Side, matrices

DEVICE = "cuda"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
VERBS = ("apply", "decide_and_apply", "rate_and_apply")
BACKENDS: dict[str, Backend] = {"triton": Triton(), "native": Native()}


def missing(backend: Backend) -> str | None:
    """Why the kernels cannot run here; None if they can."""
    if not torch.cuda.is_available():
        return "no CUDA device that torch can use"
    reason = backend.unusable(torch.device("cuda", torch.cuda.current_device()))
    return reason and f"{backend.name}: {reason}"


def each_backend() -> pytest.MarkDecorator:
    """A test for every backend that works here."""
    parameters = []
    for name, backend in BACKENDS.items():
        reason = missing(backend)
        skip = pytest.mark.skipif(reason is not None, reason=str(reason))
        parameters.append(pytest.param(backend, id=name, marks=skip))
    return pytest.mark.parametrize("backend", parameters)


def on_gpu(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """A copy with the same strides, gaps between rows included."""
    room = sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True)) + 1
    memory = torch.full((room,), 7.0, dtype=dtype or x.dtype, device=DEVICE)
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
    return torch.rand(2, rows, generator=cases.rng(seed)).to(DEVICE)


def sensitivity(rows: int) -> Sensitivity:
    """Of a second step."""
    score = torch.rand(2, rows, generator=cases.rng(7), dtype=torch.float64).to(DEVICE)
    return Sensitivity(score, torch.ones_like(score), 0.9)


def rated(
    backend: Backend, bucket: Bucket, sums: RowSums, state: Sensitivity
) -> tuple[Side, Conflicts]:
    """R, S and the steps, and the record; Eq. 3 pools the first layers, and the others."""
    groups = [sum(part) for part in (bucket.layout.channels[:3], bucket.layout.channels[3:])]
    r, record = backend.rate_and_apply_(
        bucket, sums, -sums.g_theta, state, groups, RaGradRule(), by_sensitivity=True
    )
    return [r, state.score, state.steps], record


class Given(NamedTuple):
    """What the verbs that correct are given besides gradients and sums."""

    mix: Tensor
    reliability: Tensor
    state: Sensitivity


def given(rows: int) -> Given:
    return Given(matrices(rows, device=DEVICE), reliability(rows), sensitivity(rows))


def correct_by(verb: str, backend: Backend, bucket: Bucket, sums: RowSums, by: Given) -> Side:
    """Corrects a bucket by one of `VERBS`; all that it returns or moves but the gradients."""
    if verb == "apply":
        backend.apply_(bucket, by.mix)
        return []
    if verb == "decide_and_apply":
        return found(backend.decide_and_apply_(bucket, by.reliability, RaGradRule()))
    ratings, record = rated(backend, bucket, sums, by.state)
    return [*ratings, *found(record)]


def found(record: Conflicts) -> Side:
    return [record.cosine, record.gap, record.mask, record.strength]


def everything(rgb: Side, ir: Side, record: Conflicts) -> Side:
    return [*rgb, *ir, *found(record)]


def equal(a: Side, b: Side) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
