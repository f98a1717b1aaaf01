"""Which detections are right: the pairs that the marks of the paper's Fig. 4 show."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from torchvision.ops import box_iou


class Matches(NamedTuple):
    """What became of every detection above the score threshold and of every ground truth.

    Each such detection is in exactly one of `hits`, `wrong_class` and `false_positives`;
    each ground truth in exactly one of `hits`, `wrong_class` and `misses`.
    """

    hits: list[tuple[int, int]]  # (detection, ground truth): right class, right place
    wrong_class: list[tuple[int, int]]  # (detection, ground truth): right place only
    false_positives: list[int]  # detections, surest first
    misses: list[int]  # ground truths


def match(
    detections: Mapping[str, Any],
    target: Mapping[str, Any],
    iou: float = 0.5,
    score: float = 0.3,
) -> Matches:
    """Pairs detections with ground truths greedily by descending score, one to one.

    `detections` holds boxes (n, 4) xyxy, labels (n,) and scores (n,); `target` boxes (m, 4) and
    labels (m,). A detection scoring at least `score` is a hit if a free ground truth of its class
    overlaps it by at least `iou`; it takes the one that overlaps most. Detections left over are
    then offered the ground truths left over, whatever their class: overlap enough, and it is a
    wrong class. So a wrong class never takes a ground truth from a right one, however confident.
    """
    if not 0.0 < iou <= 1.0:
        raise ValueError(f"iou is an overlap in (0, 1], found {iou}; 0.5 is customary")
    overlaps = box_iou(detections["boxes"], target["boxes"]).tolist()
    scores = detections["scores"].tolist()
    found, true = detections["labels"].tolist(), target["labels"].tolist()

    candidates = [d for d, s in enumerate(scores) if s >= score]
    candidates.sort(key=lambda d: -scores[d])  # stable: a tie keeps the detector's order
    free = set(range(len(true)))

    def claim(d: int, same_class: bool) -> int | None:
        """The free ground truth that detection d overlaps most, taken; None if there is none."""
        near = [
            (overlaps[d][t], -t)
            for t in free
            if overlaps[d][t] >= iou and (found[d] == true[t] or not same_class)
        ]
        if not near:
            return None
        best = -max(near)[1]
        free.remove(best)
        return best

    pairs = {d: claim(d, same_class=True) for d in candidates}
    hits = [(d, t) for d, t in pairs.items() if t is not None]
    pairs = {d: claim(d, same_class=False) for d in candidates if pairs[d] is None}
    wrong_class = [(d, t) for d, t in pairs.items() if t is not None]
    false_positives = [d for d, t in pairs.items() if t is None]
    return Matches(hits, wrong_class, false_positives, sorted(free))
