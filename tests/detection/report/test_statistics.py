"""Means, intervals and verdicts of the report, by hand."""

from __future__ import annotations

import math

import pytest

from ragrad_ext.detection.report.statistics import Paired, paired, points, spread

from ...lib.tolerances import BY_HAND, QUANTILE


@pytest.mark.parametrize(
    ("freedom", "quantile"), [(1, 12.7062), (2, 4.3027), (3, 3.1824), (9, 2.2622), (100, 1.9840)]
)
def test_student_quantiles_are_those_of_the_tables(freedom: int, quantile: float) -> None:
    pairs = Paired(tuple(range(freedom + 1)), tuple(map(float, range(freedom + 1))))
    found = pairs.margin / pairs.spread.std * math.sqrt(freedom + 1)
    assert found == pytest.approx(quantile, abs=QUANTILE)


def test_spread_leaves_out_what_is_not_defined() -> None:
    assert spread([0.2, 0.4, math.nan]) == pytest.approx((0.3, 0.02**0.5, 2))
    assert str(spread([0.2, 0.4])) == "0.300 ± 0.141"
    assert str(spread([0.3])) == "0.300"
    assert str(spread([math.nan])) == "–"


def test_a_paired_interval_by_hand() -> None:
    # Differences .01, .02, .03: mean .02, s = .01, t(2) = 4.3027, margin 4.3027 * .01 / sqrt(3).
    pairs = paired({0: 0.31, 1: 0.32, 2: 0.33, 9: 1.0}, {2: 0.3, 1: 0.3, 0: 0.3, 5: 1.0})
    assert pairs.seeds == (0, 1, 2)
    assert pairs.spread == pytest.approx((0.02, 0.01, 3))
    assert pairs.margin == pytest.approx(0.024841, abs=BY_HAND)
    assert pairs.interval == pytest.approx((-0.004841, 0.044841), abs=BY_HAND)


@pytest.mark.parametrize(
    ("differences", "words"),
    [
        ([0.01, 0.02, 0.03], "within the noise"),
        ([0.019, 0.02, 0.021], "larger than the noise"),
        ([-0.019, -0.02, -0.021], "larger than the noise"),
        ([0.0, 0.0], "the same in every seed"),
        ([0.5], "one seed is not enough"),
        ([], "nothing can be paired"),
        ([0.5, math.nan], "one seed is not enough"),
    ],
)
def test_a_verdict_says_no_more_than_the_seeds(differences: list[float], words: str) -> None:
    values = dict(enumerate(differences))
    assert words in paired(values, dict.fromkeys(values, 0.0)).verdict


def test_points_are_signed_hundredths() -> None:
    shown = [points(d) for d in (0.007, -0.0123, 0.0, -0.0004, math.nan)]
    assert shown == ["+0.7", "\u22121.2", "0.0", "0.0", "–"]
