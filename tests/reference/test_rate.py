"""Eq. 3 from moments, whole or put together from parts."""

from __future__ import annotations

import torch
from torch import Tensor

from ragrad_ext.reference import Moments, moments, normalise
from ragrad_ext.rules import Layout, RaGradRule
from ragrad_ext.rules.decide import decide

from ..lib import cases
from ..lib.tolerances import FLOAT64_SUM

GROUPS = [4, 6]


def values() -> tuple[Tensor, Tensor]:
    x = torch.randn(2, 10, dtype=torch.float64, generator=cases.rng(3))
    known = torch.ones(2, 10, dtype=torch.bool)
    known[0, 2] = False
    return x, known


def test_moments_by_hand() -> None:
    x = torch.tensor([[1.0, 2.0, 9.0], [3.0, -6.0, 9.0]]).double()
    known = torch.tensor([[True, True, False], [True, True, False]])
    found = moments(x, known, [2, 1])
    assert found.known.tolist() == [4.0, 0.0]
    assert found.mean[0] == 0.0
    assert found.squares[0] == 1 + 4 + 9 + 36
    assert found.largest.tolist() == [6.0, 0.0]


def combined(parts: list[Moments]) -> Moments:
    """Of a whole from those of its parts (Chan et al., 1983)."""
    n = sum(p.known for p in parts)
    mean = sum(p.known * p.mean for p in parts) / n
    squares = sum(p.squares + p.known * (p.mean - mean) ** 2 for p in parts)
    return Moments(n, mean, squares, torch.stack([p.largest for p in parts]).amax(0))


def test_processes_that_hold_a_part_each_normalise_as_one_would() -> None:
    x, known = values()
    whole = normalise(x, known, GROUPS)
    first, second = [0, 1, 4, 5, 6], [2, 3, 7, 8, 9]  # the rows of two processes
    mine = [(x[:, rows], known[:, rows], [2, 3]) for rows in (first, second)]
    parts = [moments(*m) for m in mine]
    for rows, m in zip((first, second), mine, strict=True):
        out = normalise(*m, reduce=lambda own: combined(parts))
        torch.testing.assert_close(out, whole[:, rows], rtol=FLOAT64_SUM, atol=0)


def test_processes_that_hold_a_part_each_decide_as_one_would() -> None:
    """A layer in two parts, with an inf in the first of two layers on one side."""
    g = cases.rng(4)
    gram = torch.rand(10, 3, dtype=torch.float64, generator=g) + torch.tensor([1.0, 1.0, -0.5])
    gram[5] = float("inf")
    r = torch.rand(2, 10, generator=g)
    rule = RaGradRule()
    mix, record = decide(gram, r, Layout.of([6, 4]), rule)
    assert not record.layer(0).mask.any()
    assert record.layer(1).mask.any()
    parts = [[0, 1, 6, 7], [2, 3, 4, 5, 8, 9]]
    layouts = [Layout.of([2, 2]), Layout.of([4, 2])]
    seen: list[list[Tensor]] = []
    for p in (0, 1):  # what each process sums, in the order in which it is asked
        sums: list[Tensor] = []
        decide(
            gram[parts[p]], r[:, parts[p]], layouts[p], rule,
            reduce=lambda own, sums=sums: (sums.append(own), own)[1],  # type: ignore[misc]
        )  # fmt: skip
        seen.append(sums)
    totals = [a + b for a, b in zip(*seen, strict=True)]
    for p in (0, 1):
        left = iter(totals)
        mine, found = decide(
            gram[parts[p]], r[:, parts[p]], layouts[p], rule,
            reduce=lambda own, left=left: next(left),  # type: ignore[misc]
        )  # fmt: skip
        torch.testing.assert_close(mine, mix[parts[p]])
        assert torch.equal(found.mask, record.mask[parts[p]])
