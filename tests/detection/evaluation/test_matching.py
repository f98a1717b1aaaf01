"""Hand-worked pairings of detections with ground truths."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ragrad_ext.detection.evaluation.matching import Matches, match

Box = tuple[float, float, float, float]
A: Box = (0, 0, 10, 10)
A_SHIFTED: Box = (0, 0, 10, 8)  # IoU with A: 80 / 100
A_HALF: Box = (0, 0, 10, 5)  # IoU with A: 50 / 100, with A_SHIFTED: 50 / 80
B: Box = (20, 20, 30, 30)
FAR: Box = (50, 50, 60, 60)


def truth(*items: tuple[Box, int]) -> dict[str, torch.Tensor]:
    return {
        "boxes": torch.tensor([b for b, _ in items], dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor([c for _, c in items], dtype=torch.int64),
    }


def found(*items: tuple[Box, int, float]) -> dict[str, torch.Tensor]:
    scores = torch.tensor([s for *_, s in items], dtype=torch.float32)
    return truth(*[(b, c) for b, c, _ in items]) | {"scores": scores}


def test_each_outcome_once() -> None:
    # 0: car on a car, a hit. 1: bus on a person, wrong class. 2: nothing there. Truth 2: missed.
    detections = found((A_SHIFTED, 1, 0.9), (B, 3, 0.8), (FAR, 1, 0.7))
    target = truth((A, 1), (B, 2), ((80, 80, 90, 90), 1))
    assert match(detections, target) == Matches([(0, 0)], [(1, 1)], [2], [2])


def test_one_ground_truth_takes_one_detection_the_most_confident() -> None:
    # Detection 1 fits better (IoU 1), but 0 is surer (0.8): the double is a false positive.
    detections = found((A_SHIFTED, 1, 0.9), (A, 1, 0.6))
    assert match(detections, truth((A, 1))) == Matches([(0, 0)], [], [1], [])


def test_order_is_by_score_not_by_position() -> None:
    detections = found((A, 1, 0.5), (A, 1, 0.9))
    assert match(detections, truth((A, 1))) == Matches([(1, 0)], [], [0], [])


def test_a_detection_takes_the_ground_truth_it_overlaps_most() -> None:
    # A_HALF overlaps A by 0.5 and A_SHIFTED by 0.625; then A is left for the second detection.
    detections = found((A_HALF, 1, 0.9), (A, 1, 0.8))
    target = truth((A, 1), (A_SHIFTED, 1))
    assert match(detections, target) == Matches([(0, 1), (1, 0)], [], [], [])


def test_a_confident_wrong_class_does_not_take_the_ground_truth_of_a_hit() -> None:
    detections = found((A, 2, 0.99), (A, 1, 0.4))
    assert match(detections, truth((A, 1))) == Matches([(1, 0)], [], [0], [])


def test_wrong_class_is_one_to_one() -> None:
    detections = found((A, 2, 0.5), (A, 3, 0.9))
    assert match(detections, truth((A, 1))) == Matches([], [(1, 0)], [0], [])


def test_thresholds_are_inclusive() -> None:
    target = truth((A, 1))
    at_iou = found((A_HALF, 1, 0.75))  # IoU exactly 0.5
    assert match(at_iou, target).hits == [(0, 0)]
    assert match(at_iou, target, iou=0.51) == Matches([], [], [0], [0])
    assert match(at_iou, target, score=0.75).hits == [(0, 0)]
    assert match(at_iou, target, score=0.76) == Matches([], [], [], [0])


def test_a_tied_score_keeps_the_detectors_order() -> None:
    detections = found((A, 1, 0.5), (A, 1, 0.5))
    assert match(detections, truth((A, 1))).hits == [(0, 0)]


def test_empty_sides() -> None:
    assert match(found(), truth()) == Matches([], [], [], [])
    assert match(found((A, 1, 0.9)), truth()) == Matches([], [], [0], [])
    assert match(found(), truth((A, 1), (B, 1))) == Matches([], [], [], [0, 1])


@pytest.mark.parametrize("iou", [0.0, -0.5, 1.5, float("nan")])
def test_an_impossible_overlap_is_refused(iou: float) -> None:
    with pytest.raises(ValueError, match=r"iou is an overlap in \(0, 1\], found"):
        match(found(), truth(), iou=iou)


corner = st.integers(0, 6).map(float)
boxes = st.tuples(corner, corner).map(lambda c: (c[0], c[1], c[0] + 4, c[1] + 4))
classes = st.integers(1, 2)
scores = st.sampled_from([0.1, 0.4, 0.7, 0.9])


@given(
    st.lists(st.tuples(boxes, classes, scores), max_size=6),
    st.lists(st.tuples(boxes, classes), max_size=6),
)
def test_everything_is_accounted_for_once(
    detected: Sequence[tuple[Box, int, float]], true: Sequence[tuple[Box, int]]
) -> None:
    result = match(found(*detected), truth(*true))
    claimed = [*result.hits, *result.wrong_class]
    kept = [d for d, (_, _, s) in enumerate(detected) if s >= 0.3]
    assert sorted([d for d, _ in claimed] + result.false_positives) == kept
    assert sorted([t for _, t in claimed] + result.misses) == list(range(len(true)))
    assert all(detected[d][1] == true[t][1] for d, t in result.hits)
    assert all(detected[d][1] != true[t][1] for d, t in result.wrong_class)
