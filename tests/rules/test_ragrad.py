"""Eq. 6-10 by hand."""

from __future__ import annotations

import math

import pytest
import torch

from ragrad_ext.rules.ragrad import (
    Options,
    blending_weight,
    correct_layer,
    cosine_similarity,
    identify_conflicts,
    resolve_conflict,
)

# Row 0: dot -3, norms 1 and 5, cosine -0.6.   Row 1: dot -35, norms 5 and 25, cosine -0.28.
# Row 2: cosine 1.                              Mean of the negative cosines: -0.44.
G_RGB = torch.tensor([[1.0, 0.0], [5.0, 0.0], [1.0, 0.0]])
G_IR = torch.tensor([[-3.0, 4.0], [-7.0, 24.0], [2.0, 0.0]])
# Gaps 0.6, 0.1, 0.0, mean 0.2333: row 0 alone is below -0.44 and above 0.2333.
R_RGB = torch.tensor([0.8, 0.5, 0.5])
R_IR = torch.tensor([0.2, 0.4, 0.5])
LAMBDA = 1 / (1 + math.exp(-0.6))  # Eq. 10: sigmoid(0.6 / (0.8 + 0.2)) = 0.6457


def test_eq6_cosine() -> None:
    cosine = cosine_similarity(G_RGB.double(), G_IR.double())
    assert cosine.tolist() == pytest.approx([-0.6, -0.28, 1.0], rel=1e-7)


def test_eq6_both_criteria() -> None:
    cosine = torch.tensor([-0.6, -0.28, 1.0])
    gap = torch.tensor([0.6, 0.1, 0.0])
    assert identify_conflicts(cosine, gap, "dual").tolist() == [True, False, False]
    # Direction alone is not enough: with the gap on row 2, no row meets both.
    assert not identify_conflicts(cosine, gap.flip(0), "dual").any()


def test_eq6_without_dcci_every_negative_cosine_conflicts() -> None:
    found = identify_conflicts(torch.tensor([-0.6, -0.28, 1.0]), torch.zeros(3), "cosine")
    assert found.tolist() == [True, True, False]


def test_eq6_is_strict() -> None:
    same = torch.full((7,), -0.3, dtype=torch.float64)
    apart = torch.linspace(0, 1, 7, dtype=torch.float64)
    assert not identify_conflicts(same, apart, "dual").any()  # no cosine below its own mean
    equal_gaps = torch.full((7,), 0.1).double()
    assert not identify_conflicts(-apart, equal_gaps, "dual").any()


def test_eq6_without_negative_cosines_nothing_conflicts() -> None:
    assert not identify_conflicts(torch.tensor([0.0, 0.5]), torch.tensor([0.0, 1.0]), "dual").any()


def test_eq8_removes_the_component_along_the_strong_gradient() -> None:
    # dot -3, |strong|^2 = 1: (-3, 4) + 3 (1, 0) = (0, 4)
    out = resolve_conflict(G_IR[:1], G_RGB[:1], torch.zeros(1), 1e-30)
    assert out.tolist() == [[0.0, 4.0]]


def test_eq9_blends_the_strong_gradient_in() -> None:
    # (1 - 0.25) (0, 4) + 0.25 (1, 0) = (0.25, 3)
    out = resolve_conflict(G_IR[:1], G_RGB[:1], torch.tensor([0.25]), 1e-30)
    assert out.tolist() == [[0.25, 3.0]]


def test_eq10_strength() -> None:
    gap, total = torch.tensor([0.6, 0.0, 1.0]).double(), torch.tensor([1.0, 0.7, 1.0]).double()
    assert blending_weight(gap, total, Options()).tolist() == pytest.approx(
        [LAMBDA, 0.5, 0.7310585786300049]
    )
    assert blending_weight(gap, total, Options(resolve="project")).tolist() == [0.0, 0.0, 0.0]


def test_a_layer_from_end_to_end() -> None:
    out = correct_layer(G_RGB, G_IR, R_RGB, R_IR, Options())
    assert out.mask.tolist() == [True, False, False]
    assert out.strength.tolist() == pytest.approx([LAMBDA, 0, 0])
    assert out.gap.tolist() == pytest.approx([0.6, 0.1, 0.0])
    assert torch.equal(out.g_rgb, G_RGB)  # Eq. 7: rgb is reliable, only ir is rewritten
    assert out.g_ir[0].tolist() == pytest.approx([LAMBDA, 4 * (1 - LAMBDA)])
    assert torch.equal(out.g_ir[1:], G_IR[1:])


def test_eq7_the_other_way_round() -> None:
    out = correct_layer(G_RGB, G_IR, R_IR, R_RGB, Options())
    # weak (1, 0), strong (-3, 4): dot -3, |strong|^2 = 25
    # Eq. 8: (1, 0) + 0.12 (-3, 4) = (0.64, 0.48); Eq. 9 adds lambda of the strong one
    assert torch.equal(out.g_ir, G_IR)
    expected = [(1 - LAMBDA) * 0.64 - 3 * LAMBDA, (1 - LAMBDA) * 0.48 + 4 * LAMBDA]
    assert out.g_rgb[0].tolist() == pytest.approx(expected)


def test_eq7_a_tie_takes_rgb_as_reliable() -> None:
    half = torch.full((3,), 0.5)
    out = correct_layer(G_RGB, G_IR, half, half, Options(identify="cosine"))
    assert out.mask.tolist() == [True, True, False]
    assert torch.equal(out.g_rgb, G_RGB)
    assert not torch.equal(out.g_ir[:2], G_IR[:2])


def test_without_rggc_the_weak_row_is_the_projection() -> None:
    out = correct_layer(G_RGB, G_IR, R_RGB, R_IR, Options(resolve="project"))
    assert out.g_ir[0].tolist() == [0.0, 4.0]
    assert out.strength.tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("side", [0, 1])
def test_a_layer_with_a_non_finite_element_is_left_alone(bad: float, side: int) -> None:
    twins = [G_RGB.clone(), G_IR.clone()]
    twins[side][2, 1] = bad
    out = correct_layer(*twins, R_RGB, R_IR, Options())
    for new, old in zip((out.g_rgb, out.g_ir), twins, strict=True):
        assert torch.equal(new.view(torch.int32), old.view(torch.int32))
    assert not out.mask.any()
    assert out.cosine.isnan().all()
