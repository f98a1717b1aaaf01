"""The operators are what they say they are, and compiled code computes what eager code does."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ragrad_ext import Reliability, Repa, correct_
from ragrad_ext.backends import BACKENDS

from ..lib import cases
from ..lib.parity import matrices

USABLE = [b.name for b in BACKENDS if b.unusable(torch.device("cpu")) is None]


def arguments() -> tuple[list[Tensor], list[Tensor], Tensor]:
    rgb, ir = ([x.clone() for x in side] for side in cases.AWKWARD["several layers"])
    return rgb, ir, torch.rand(2, sum(map(len, rgb)), generator=cases.rng())


@pytest.mark.parametrize("backend", USABLE)
def test_the_correction_passes_opcheck(backend: str) -> None:
    rgb, ir, r = arguments()
    geometry = [0, 2, 3], [4, 5, 32, 7], [0, 0, 0, 0], backend
    r = torch.cat([r[:, :4], r.new_zeros(2, 5), r[:, 4:]], 1)
    op = torch.ops.ragrad_ext.decide_and_apply_.default
    torch.library.opcheck(op, (rgb, ir, r, "dual", "blend", 1e-30, *geometry))


@pytest.mark.parametrize("backend", USABLE)
def test_the_rewrite_passes_opcheck(backend: str) -> None:
    rgb, ir, _ = arguments()
    geometry = [0, 1, 2], [4, 32, 7], [0, 0, 0], backend
    op = torch.ops.ragrad_ext.apply_.default
    torch.library.opcheck(op, (rgb, ir, matrices(43), *geometry))


@pytest.mark.parametrize("backend", USABLE)
@pytest.mark.parametrize("by_effect", [True, False])
def test_the_rating_passes_opcheck(backend: str, by_effect: bool) -> None:
    rgb, ir, r = arguments()
    geometry = [0, 1, 2], [4, 32, 7], [0, 0, 0], backend
    gram = torch.stack([torch.ones(43), torch.ones(43), torch.randn(43).clamp(-1, 1)], 1).double()
    sums = gram, r.double(), r.double(), r > 0.1
    effect = r.double() if by_effect else None
    op = torch.ops.ragrad_ext.rate_and_apply_.default
    state = r.double(), torch.ones(2, 43).double(), 0.95, [43], True
    torch.library.opcheck(op, (rgb, ir, *sums, effect, *state, "dual", "blend", 1e-30, *geometry))


@pytest.mark.parametrize("backend", USABLE)
@pytest.mark.parametrize("history", [True, False])
def test_the_observation_passes_opcheck(backend: str, history: bool) -> None:
    rgb, ir, r = arguments()
    mean = [x.clone() for x in rgb], [x.clone() for x in ir]
    given = (*mean, r.double()) if history else ([], [], None)
    theta = [None, rgb[1].clone(), rgb[2].clone()], [None] * 3
    geometry = [0, 1, 2], [4, 32, 7], [0, 0, 0], backend
    op = torch.ops.ragrad_ext.observe_.default
    torch.library.opcheck(op, (rgb, ir, *theta, *given, *geometry))


@pytest.mark.slow
@pytest.mark.parametrize("backend", USABLE)
def test_a_compiled_correction_is_one_graph_and_the_same_bits(backend: str) -> None:
    rgb, ir, r = arguments()
    parts = r.split([len(x) for x in rgb], 1)
    given = Reliability([p[0] for p in parts], [p[1] for p in parts])

    def step(rgb: list[Tensor], ir: list[Tensor]) -> tuple[Tensor, ...]:
        record = correct_([*rgb[:2], rgb[2] * 2], ir, given, backend=backend)
        return record.mask, record.cosine, record.gap, record.strength

    eager = [x.clone() for x in rgb], [x.clone() for x in ir]
    compiled = [x.clone() for x in rgb], [x.clone() for x in ir]
    true = step(*eager)
    found = torch.compile(step, fullgraph=True)(*compiled)
    assert true[0].any()
    for a, b in zip(
        (*true, *eager[0], *eager[1]), (*found, *compiled[0], *compiled[1]), strict=True
    ):
        assert torch.equal(a, b)


@pytest.mark.slow
@pytest.mark.parametrize("backend", USABLE)
def test_a_compiled_step_with_statistics_is_the_same(backend: str) -> None:
    rgb, ir, _ = arguments()
    stats = [Repa([x.clone() for x in rgb], [x.clone() for x in ir]) for _ in range(2)]
    compiled = torch.compile(correct_)
    for t in range(3):
        results = []
        for run, repa in zip((correct_, compiled), stats, strict=True):
            new = [x + t for x in rgb], [x - t for x in ir]
            record = run(*new, repa, backend=backend)
            results.append((*new[0], *new[1], record.mask))
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b)
    states = [s.state_dict() for s in stats]
    assert torch.equal(states[0]["steps"], states[1]["steps"])
    torch.testing.assert_close(states[0]["mean"], states[1]["mean"])
