"""Eq. 6-10 by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ragrad_ext import Conflicts
from ragrad_ext.rows.layout import Layout
from ragrad_ext.rules import RaGradRule
from ragrad_ext.rules.decide import decide
from ragrad_ext.rules.gram import cosine_similarity
from ragrad_ext.rules.ragrad import layer_sums, thresholds_of

# Row 0: dot -3, norms 1 and 5, cosine -0.6.   Row 1: dot -35, norms 5 and 25, cosine -0.28.
# Row 2: cosine 1.                              Mean of the negative cosines: -0.44.
G_RGB = torch.tensor([[1.0, 0.0], [5.0, 0.0], [1.0, 0.0]])
G_IR = torch.tensor([[-3.0, 4.0], [-7.0, 24.0], [2.0, 0.0]])
GRAM = torch.tensor([[1.0, 25.0, -3.0], [25.0, 625.0, -35.0], [1.0, 4.0, 2.0]]).double()
LAYOUT = Layout.of([3])
# Gaps 0.6, 0.1, 0.0, mean 0.2333: row 0 alone is below -0.44 and above 0.2333.
R_RGB = torch.tensor([0.8, 0.5, 0.5])
R_IR = torch.tensor([0.2, 0.4, 0.5])
LAMBDA = 1 / (1 + math.exp(-0.6))  # Eq. 10: sigmoid(0.6 / (0.8 + 0.2)) = 0.6457


def found(
    rule: RaGradRule, r_rgb: Tensor = R_RGB, r_ir: Tensor = R_IR, gram: Tensor = GRAM
) -> tuple[Tensor, Conflicts]:
    return decide(gram, torch.stack([r_rgb, r_ir]), Layout.of([len(gram)]), rule)


def mixed(mix: Tensor) -> tuple[Tensor, Tensor]:
    """Both gradients after the rewrite."""
    both = torch.einsum("imn,inj->imj", mix, torch.stack([G_RGB, G_IR], 1).double())
    return both[:, 0], both[:, 1]


def grams(cosine: Tensor) -> Tensor:
    """Of unit rows."""
    one = torch.ones_like(cosine)
    return torch.stack([one, one, cosine], 1).double()


def test_eq6_cosine() -> None:
    assert cosine_similarity(GRAM).tolist() == pytest.approx([-0.6, -0.28, 1.0], rel=1e-7)
    zero_row = torch.tensor([[0.0, 25.0, 0.0]]).double()
    assert cosine_similarity(zero_row).tolist() == [0.0]


def test_eq6_thresholds() -> None:
    mu_cos, mu_gap = thresholds_of(layer_sums(GRAM, torch.stack([R_RGB, R_IR]), LAYOUT))
    assert mu_cos.tolist() == pytest.approx([-0.44])
    assert mu_gap.tolist() == pytest.approx([0.7 / 3])


def test_eq6_sums_of_parts_of_a_layer_add_up() -> None:
    r = torch.stack([R_RGB, R_IR])
    parts = [
        layer_sums(GRAM[rows], r[:, rows], Layout.of([len(GRAM[rows])]))
        for rows in (slice(0, 1), slice(1, 3))
    ]
    torch.testing.assert_close(sum(parts), layer_sums(GRAM, r, LAYOUT))


def test_eq6_both_criteria() -> None:
    assert found(RaGradRule())[1].mask.tolist() == [True, False, False]
    # Direction alone is not enough: with the gap on row 2, no row meets both.
    assert not found(RaGradRule(), R_RGB.flip(0), R_IR.flip(0))[1].mask.any()


def test_eq6_without_dcci_every_negative_cosine_conflicts() -> None:
    assert found(RaGradRule(identify="cosine"))[1].mask.tolist() == [True, True, False]


def test_eq6_is_strict() -> None:
    same, apart = torch.full((7,), -0.3), torch.linspace(0, 1, 7)
    none = torch.zeros(7)
    assert not found(RaGradRule(), apart, none, grams(same))[1].mask.any()  # none below the mean
    assert not found(RaGradRule(), torch.full((7,), 0.1), none, grams(-apart))[1].mask.any()


def test_eq6_without_negative_cosines_nothing_conflicts() -> None:
    r = torch.tensor([0.0, 1.0])
    assert not found(RaGradRule(), r, 0 * r, grams(torch.tensor([0.0, 0.5])))[1].mask.any()


def test_eq6_is_decided_layer_by_layer() -> None:
    twice = Layout.of([3, 3])
    r = torch.stack([torch.cat([R_RGB, R_RGB]), torch.cat([R_IR, R_IR])])
    mix, record = decide(torch.cat([GRAM, 4 * GRAM]), r, twice, RaGradRule())
    alone = found(RaGradRule())
    for l in range(2):
        assert torch.equal(record.layer(l).mask, alone[1].mask)
        assert torch.equal(mix[twice.slices()[l]], alone[0])


def test_eq8_removes_the_component_along_the_strong_gradient() -> None:
    # dot -3, |strong|^2 = 1: (-3, 4) + 3 (1, 0) = (0, 4)
    mix, record = found(RaGradRule(resolve="project"))
    assert mix[0].tolist() == [[1.0, 0.0], [3.0, 1.0]]
    assert mixed(mix)[1][0].tolist() == [0.0, 4.0]
    assert record.strength.tolist() == [0.0, 0.0, 0.0]


def test_eq10_strength() -> None:
    r = torch.tensor([[0.8, 0.35, 1.0], [0.2, 0.35, 0.0]])
    assert RaGradRule().strength(r).tolist() == pytest.approx([LAMBDA, 0.5, 0.7310585786300049])
    assert RaGradRule(resolve="project").strength(r).tolist() == [0.0, 0.0, 0.0]


def test_a_layer_from_end_to_end() -> None:
    mix, record = found(RaGradRule())
    new_rgb, new_ir = mixed(mix)
    assert record.mask.tolist() == [True, False, False]
    assert record.strength.tolist() == pytest.approx([LAMBDA, 0, 0])
    assert record.gap.tolist() == pytest.approx([0.6, 0.1, 0.0])
    assert torch.equal(new_rgb, G_RGB.double())  # Eq. 7: rgb is reliable, only ir is rewritten
    # Eq. 9: (1 - lambda) (0, 4) + lambda (1, 0)
    assert new_ir[0].tolist() == pytest.approx([LAMBDA, 4 * (1 - LAMBDA)])
    assert torch.equal(new_ir[1:], G_IR[1:].double())


def test_eq7_the_other_way_round() -> None:
    new_rgb, new_ir = mixed(found(RaGradRule(), R_IR, R_RGB)[0])
    # weak (1, 0), strong (-3, 4): dot -3, |strong|^2 = 25
    # Eq. 8: (1, 0) + 0.12 (-3, 4) = (0.64, 0.48); Eq. 9 adds lambda of the strong one
    assert torch.equal(new_ir, G_IR.double())
    expected = [(1 - LAMBDA) * 0.64 - 3 * LAMBDA, (1 - LAMBDA) * 0.48 + 4 * LAMBDA]
    assert new_rgb[0].tolist() == pytest.approx(expected)


def test_eq7_a_tie_takes_rgb_as_reliable() -> None:
    half = torch.full((3,), 0.5)
    mix, record = found(RaGradRule(identify="cosine"), half, half)
    assert record.mask.tolist() == [True, True, False]
    assert (mix[:, 0] == torch.tensor([1.0, 0.0])).all()
    assert (mix[:2, 1] != torch.tensor([0.0, 1.0])).any(1).all()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"identify": "both"}, "identify='both' is unknown; choose one of"),
        ({"resolve": "mean"}, "resolve='mean' is unknown"),
        ({"eps": 0.0}, "eps=0.0 cannot guard"),
        ({"eps": math.nan}, "eps=nan cannot guard"),
        ({"eps": math.inf}, "eps=inf cannot guard"),
        ({"eps": -1e-8}, "eps=-1e-08 cannot guard"),
    ],
)
def test_bad_options_are_named(options: dict, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        RaGradRule(**options)
