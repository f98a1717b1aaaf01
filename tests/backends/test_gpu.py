"""The kernels on a CUDA device agree with the reference."""

from __future__ import annotations

import math

import pytest
import torch

from ragrad_ext.backends import Backend
from ragrad_ext.rules import RaGradRule
from ragrad_ext.rules.ragrad import Identify, Resolve

from ..lib import cases
from ..lib.gpu_cases import DTYPES, each_backend, many_layers, on_gpu, reliability
from ..lib.parity import (
    bits,
    bucket_of,
    clone,
    compare,
    compare_mixing,
    compare_observation,
    corrected,
    matrices_for,
)
from ..lib.tolerances import RESULT

EACH = each_backend()
pytestmark = pytest.mark.gpu


@EACH
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", cases.AWKWARD)
def test_correction_agrees_on_awkward_inputs(
    backend: Backend, name: str, dtype: torch.dtype
) -> None:
    rgb, ir = ([on_gpu(x, dtype) for x in side] for side in cases.AWKWARD[name])
    compare(backend, rgb, ir)


@EACH
@pytest.mark.parametrize("identify", ["dual", "cosine"])
@pytest.mark.parametrize("resolve", ["blend", "project"])
def test_correction_agrees_under_every_option(
    backend: Backend, identify: Identify, resolve: Resolve
) -> None:
    rgb, ir = ([on_gpu(x) for x in side] for side in cases.AWKWARD["several layers"])
    compare(backend, rgb, ir, rule=RaGradRule(identify, resolve))


@EACH
@pytest.mark.parametrize("dtype", DTYPES)
def test_correction_agrees_on_many_layers(backend: Backend, dtype: torch.dtype) -> None:
    rows, close = compare(backend, *many_layers(dtype))
    assert close <= rows / 1000


@EACH
@pytest.mark.parametrize("scale", [1e-25, 1e19, 1e30])
def test_squares_neither_vanish_nor_overflow(backend: Backend, scale: float) -> None:
    rgb, ir = ([on_gpu(x) for x in side] for side in cases.twins(64, 1500, scale=scale))
    compare(backend, rgb, ir)


@EACH
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_layer_with_inf_or_nan_is_left_untouched(backend: Backend, bad: float) -> None:
    rgb, ir = ([on_gpu(x[0]) for _ in range(2)] for x in cases.twins(40, 37, agreement=-0.8))
    rgb[0][2, 36] = bad
    compare(backend, rgb, ir)
    new_rgb, new_ir, record = corrected(backend, rgb, ir, reliability(80), RaGradRule())
    assert torch.equal(bits(new_rgb[0]), bits(rgb[0]))
    assert torch.equal(bits(new_ir[0]), bits(ir[0]))
    assert record.cosine[:40].isnan().all()
    assert record.mask[:40].sum() == 0 < record.mask[40:].sum()


@EACH
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", [*cases.AWKWARD, "many layers"])
def test_apply_agrees(backend: Backend, name: str, dtype: torch.dtype) -> None:
    if name == "many layers":
        rgb, ir = many_layers(dtype)
    else:
        rgb, ir = ([on_gpu(x, dtype) for x in side] for side in cases.AWKWARD[name])
    compare_mixing(backend, rgb, ir, matrices_for(rgb, ir))


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
    record = backend.decide_and_apply_(bucket_of([rgb], [ir]), r, RaGradRule("cosine"))
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
