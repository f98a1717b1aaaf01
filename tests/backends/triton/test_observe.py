"""The Triton backend observes what the reference does, in Triton's interpreter."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ragrad_ext.backends.triton.backend import Triton

from ...lib import cases
from ...lib.parity import clone, compare_observation, observed
from ...lib.triton_cases import SLOW, SMALL, USUAL, tune

pytest.importorskip("triton")
pytestmark = pytest.mark.interpreted


@pytest.mark.parametrize(
    ("dtype", "history", "how"),
    [
        pytest.param(torch.float32, None, USUAL, marks=SLOW),
        pytest.param(torch.float32, torch.float32, USUAL, marks=SLOW),
        (torch.float32, torch.float32, SMALL),
        pytest.param(torch.float32, torch.bfloat16, USUAL, marks=SLOW),
        pytest.param(torch.bfloat16, torch.float32, USUAL, marks=SLOW),
        (torch.bfloat16, torch.bfloat16, SMALL),
        pytest.param(torch.float16, torch.bfloat16, USUAL, marks=SLOW),
    ],
)
@pytest.mark.parametrize("name", cases.AWKWARD)
def test_observation_agrees(
    name: str,
    history: torch.dtype | None,
    dtype: torch.dtype,
    how: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tune(monkeypatch, how)
    rgb, ir = ([cases.cast(x, dtype) for x in side] for side in cases.AWKWARD[name])
    theta = clone(ir), clone(rgb)
    mean = None
    if history is not None:
        mean = [0.5 * cases.cast(x, history) for x in ir], [cases.cast(x, history) for x in rgb]
    compare_observation(Triton(), rgb, ir, theta, mean)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
def test_weights_and_history_may_have_types_and_strides_of_their_own(dtype: torch.dtype) -> None:
    rgb, ir = ([x.to(torch.bfloat16) for x in side] for side in cases.twins(9, 4, 4))
    theta, mean = cases.twins(9, 4, 4, seed=1), cases.twins(9, 4, 4, seed=2)
    theta = tuple([cases.transposed(x).to(dtype) for x in side] for side in theta)  # type: ignore[assignment]
    compare_observation(Triton(), rgb, ir, theta, mean)
    theta = tuple([x.contiguous() for x in side] for side in theta)  # type: ignore[assignment]
    compare_observation(Triton(), rgb, ir, theta, mean)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(5, 37), (5, 4, 3, 3)])
@pytest.mark.parametrize("absent", [(0,), (1,), (0, 1)])
def test_a_weight_that_is_not_read_counts_as_zero(
    absent: tuple[int, ...], shape: tuple[int, ...]
) -> None:
    rgb, ir = ([cases.transposed(x) for x in side] for side in cases.twins(*shape))
    theta = cases.twins(*shape, seed=1)
    both = observed(Triton(), rgb, ir, theta, None, 1.0)
    some = tuple([None] if m in absent else side for m, side in enumerate(theta))
    sums = observed(Triton(), rgb, ir, some, None, 1.0)  # type: ignore[arg-type]
    for m in (0, 1):
        assert torch.equal(sums.g_theta[m], both.g_theta[m] * (m not in absent))
        assert both.g_theta[m].all()
    assert not sums.deviation.any()


def test_weights_that_do_not_fit_are_refused() -> None:
    rgb, ir = cases.twins(5, 37)
    for theta, match in (
        (([rgb[0][:, 1:]], ir), r"weights_rgb\[0\] has another shape or device"),
        (([rgb[0].double()], ir), r"weights_rgb\[0\] and its twin have different dtypes"),
        (([rgb[0].int()], ir), r"weights_rgb\[0\] has a dtype that the triton backend"),
        (([], ir), r"weights_rgb has 0 entries for 1 pairs"),
    ):
        with pytest.raises(ValueError, match=match):
            observed(Triton(), rgb, ir, theta, None, 1.0)
