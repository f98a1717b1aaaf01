"""The logic of the CUDA kernels for `observe_`, run on the host."""

from __future__ import annotations

import ctypes
import math
from itertools import product

import pytest
import torch

from ..lib import cases
from ..lib.cuda_on_host.backend import OnHost, Sizes
from ..lib.parity import clone, compare_observation, observed

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
pytestmark = pytest.mark.slow


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("history", [None, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", cases.AWKWARD)
def test_observation_agrees(
    cuda_on_host: ctypes.CDLL, name: str, history: torch.dtype | None, dtype: torch.dtype
) -> None:
    rgb, ir = ([cases.cast(x, dtype) for x in side] for side in cases.AWKWARD[name])
    mean = tuple([0.5 * cases.cast(x, history) for x in side] for side in (ir, rgb))
    compare_observation(
        OnHost(cuda_on_host, 4), rgb, ir, (clone(ir), clone(rgb)), mean if history else None
    )


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("dtype", DTYPES)
def test_observation_reads_weights_of_any_type_or_none(
    cuda_on_host: ctypes.CDLL, dtype: torch.dtype, weights: torch.dtype
) -> None:
    rgb, ir = ([x.to(dtype) for x in side] for side in cases.twins(9, 200))
    rgb, ir = rgb * 3, [x.clone() for x in ir * 3]
    rgb = clone(rgb)
    theta = [[x.to(weights) for x in side] for side in cases.twins(9, 200, seed=1)]
    some = (theta[0] + [None] + theta[0], [None] + theta[1] + theta[1])
    compare_observation(OnHost(cuda_on_host), rgb, ir, some, None)  # type: ignore[arg-type]


def test_observation_gives_the_same_bits_in_any_order(cuda_on_host: ctypes.CDLL) -> None:
    rgb, ir = cases.AWKWARD["several layers"]
    results = []
    for blocks, seed in product((1, 2, 5), range(4)):
        mean = clone(ir), clone(rgb)
        sums = observed(OnHost(cuda_on_host, blocks, seed), rgb, ir, (ir, rgb), mean, 0.25)
        results.append([*sums, *mean[0], *mean[1]])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
def test_non_finite_elements_stay_out_of_sums_and_mu(
    cuda_on_host: ctypes.CDLL, dtype: torch.dtype
) -> None:
    for bad in (math.nan, math.inf, -math.inf):
        rgb, ir = ([x.to(dtype) for x in side] for side in cases.twins(5, 37))
        rgb[0][2, 36] = bad
        theta, mean = cases.twins(5, 37, seed=3), cases.twins(5, 37, seed=4)
        sums = compare_observation(OnHost(cuda_on_host), rgb, ir, theta, mean)
        assert sums.observed.tolist() == [[True, True, False, True, True], [True] * 5]
        assert sums.gram is not None
        assert not sums.gram[2, 0].isfinite()
        assert mean[0][0].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_sixteen_bit_pattern(cuda_on_host: ctypes.CDLL, dtype: torch.dtype) -> None:
    """Read through g.theta with theta = 1; written through mu <- mu + 1 (g - mu)."""
    g = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    g = g[g.isfinite()].reshape(-1, 2)
    backend = OnHost(cuda_on_host, 1, sizes=Sizes(unit_bytes=1 << 30))
    theta = torch.tensor([[1, 0]], dtype=dtype).expand(len(g), 2).contiguous()
    mean = torch.zeros_like(g, dtype=torch.bfloat16)
    means = [mean], [mean + 0]
    sums = observed(backend, [g], [g + 0], ([theta], [1 - theta]), means, 1.0)
    assert torch.equal(sums.g_theta, g.T.double())
    assert torch.equal(mean, g.to(torch.bfloat16))
