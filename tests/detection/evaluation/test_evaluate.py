"""Average precision worked by hand, and the loop that runs a model."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ragrad_ext.detection.evaluation.evaluate import average_precision, detect, evaluating

BOX = [10.0, 10.0, 20.0, 20.0]
FAR = [50.0, 50.0, 70.0, 60.0]
# One image holds BOX of class 1, FAR of class 2.
BOTH: dict[str, Any] = {"boxes": [BOX, FAR], "labels": [1, 2]}


def boxes(boxes: list[list[float]], labels: list[int]) -> dict[str, Any]:
    return {"boxes": torch.tensor(boxes).reshape(-1, 4), "labels": torch.tensor(labels).long()}


def found(
    places: list[list[float]], labels: list[int], scores: list[float] | None = None
) -> dict[str, Any]:
    scores = [0.9 - 0.1 * i for i in range(len(labels))] if scores is None else scores
    return {**boxes(places, labels), "scores": torch.tensor(scores)}


class Listed:
    """A dataset of given targets, whose images may not be read."""

    classes = ("a", "b", "c")

    def __init__(self, targets: list[dict[str, Any]], conditions: list[str] | None = None) -> None:
        self.targets = targets
        self.conditions = conditions or ["all"] * len(targets)

    def __len__(self) -> int:
        return len(self.targets)

    def target(self, index: int) -> dict[str, Any]:
        return self.targets[index]

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Any]]:
        raise AssertionError("the images are not needed")


def overall(targets: list[dict[str, Any]], detections: list[dict[str, Any]]) -> dict[str, float]:
    result = average_precision(Listed(targets), detections)
    assert list(result) == ["overall"]  # one condition is no split
    return result["overall"]


def test_perfect_detections(capsys: pytest.CaptureFixture[str]) -> None:
    # Class c has no object anywhere: it is left out, not counted as 0.
    result = overall([boxes(**BOTH)], [found([BOX, FAR], [1, 2])])
    assert result == pytest.approx({"AP": 1, "AP50": 1, "AP75": 1})
    assert capsys.readouterr() == ("", "")


def test_one_miss_of_two() -> None:
    # Recall ends at 1/2: precision is 1 at the 51 of 101 recalls up to 0.50, then 0.
    result = overall([boxes([BOX, FAR], [1, 1])], [found([BOX], [1])])
    assert result == pytest.approx(dict.fromkeys(("AP", "AP50", "AP75"), 51 / 101))


def test_a_false_positive_before_the_hit_halves_precision_and_one_after_costs_nothing() -> None:
    truth = [boxes([BOX], [1])]
    before = overall(truth, [found([FAR, BOX], [1, 1], [0.9, 0.8])])
    after = overall(truth, [found([FAR, BOX], [1, 1], [0.7, 0.8])])
    assert before["AP"] == pytest.approx(1 / 2)
    assert after["AP"] == pytest.approx(1)


def test_overlap_counts_at_low_thresholds_only() -> None:
    # 6.2 of 10 pixels wide: IoU 0.62 passes 0.50, 0.55 and 0.60, three thresholds of ten.
    result = overall([boxes([BOX], [1])], [found([[10, 10, 16.2, 20]], [1])])
    assert result == pytest.approx({"AP": 0.3, "AP50": 1, "AP75": 0})


def test_wrong_class_counts_for_neither() -> None:
    # Class 1 misses its object; class 2 finds one of one, its false positive ranks after it.
    result = overall([boxes(**BOTH)], [found([FAR, BOX], [2, 2], [0.9, 0.8])])
    assert result["AP"] == pytest.approx(1 / 2)
    assert overall([boxes([BOX], [1])], [found([BOX], [2])])["AP"] == 0


def test_each_condition_is_scored_on_its_own_images() -> None:
    data = Listed(
        [boxes([BOX], [1]), boxes([FAR], [2]), boxes([BOX], [1])], ["day", "night", "day"]
    )
    detections = [found([BOX], [1]), found([], []), found([BOX], [1])]
    result = average_precision(data, detections)
    assert list(result) == ["overall", "day", "night"]
    assert result["overall"]["AP"] == pytest.approx(1 / 2)  # class 1 perfect, class 2 lost
    assert result["day"]["AP"] == pytest.approx(1)  # no object of class 2 by day
    assert result["night"]["AP"] == 0


def test_no_detections_is_0_and_no_objects_is_nan() -> None:
    nothing = found([], [])
    assert overall([boxes(**BOTH)], [nothing]) == {"AP": 0, "AP50": 0, "AP75": 0}
    assert all(map(math.isnan, overall([boxes([], [])], [found([BOX], [1])]).values()))
    assert all(map(math.isnan, overall([boxes([], [])], [nothing]).values()))


def test_order_of_images_and_scale_of_scores_do_not_matter() -> None:
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(6, 8, 2, generator=generator) * 60
    places = torch.cat([corners, corners + 12], 2)
    noisy = places + torch.randn(places.shape, generator=generator)
    labels = torch.randint(1, 4, (6, 8), generator=generator)
    scores = torch.rand(6, 8, generator=generator)
    truth = [boxes(places[i].tolist(), labels[i].tolist()) for i in range(6)]
    hits = [found(noisy[i].tolist(), labels[i].tolist(), scores[i].tolist()) for i in range(6)]
    result = overall(truth, hits)
    assert 0 < result["AP75"] < result["AP50"] <= 1
    assert 0 < result["AP"] < result["AP50"]
    assert overall(truth[::-1], hits[::-1]) == pytest.approx(result)
    assert overall(truth, [{**h, "scores": h["scores"] / 7} for h in hits]) == pytest.approx(result)


def test_targets_come_from_the_samples_where_there_is_no_short_way() -> None:
    class Samples:
        classes, conditions = ("a",), ("all",)

        def __len__(self) -> int:
            return 1

        def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Any]]:
            return torch.zeros(4, 8, 8), boxes([BOX], [1])

    assert average_precision(Samples(), [found([BOX], [1])])["overall"]["AP"] == pytest.approx(1)


def test_one_dict_per_image_is_demanded() -> None:
    with pytest.raises(ValueError, match=r"detections of 1 images for a dataset of 2.*order"):
        average_precision(Listed([boxes([BOX], [1])] * 2), [found([BOX], [1])])


class Echo(nn.Module):
    """Reports each image's first pixel as score, once as background and once as label 1."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.frozen = nn.BatchNorm2d(4).eval()
        self.batches: list[int] = []

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        assert not any(module.training for module in self.modules())
        self.batches.append(len(images))
        labels = torch.tensor([0, 1])
        return [
            {
                "boxes": torch.tensor([BOX, FAR]),
                "labels": labels,
                "scores": self.weight * image[0, 0, 0].repeat(2),
            }
            for image in images
        ]


def test_detect_keeps_the_order_and_leaves_the_model_as_it_was(
    capsys: pytest.CaptureFixture[str],
) -> None:
    dataset: list[tuple[Tensor, dict[str, Any]]] = [
        (torch.full((4, 8, 8), i / 10), {}) for i in range(5)
    ]
    model = Echo()
    detections = detect(model, dataset, "cpu", batch_size=2)
    assert model.batches == [2, 2, 1]
    assert [d["scores"].tolist() for d in detections] == [[pytest.approx(i / 10)] for i in range(5)]
    assert all(d["labels"].tolist() == [1] and d["boxes"].tolist() == [FAR] for d in detections)
    assert not any(d["scores"].requires_grad for d in detections)
    assert (model.training, model.frozen.training) == (True, False)
    assert capsys.readouterr() == ("", "")


def test_detect_shows_a_bar_on_request(capsys: pytest.CaptureFixture[str]) -> None:
    detect(Echo(), [(torch.zeros(4, 8, 8), {})], progress=True)
    assert "detect" in capsys.readouterr().err


def test_modes_come_back_after_an_error() -> None:
    model = Echo()
    with pytest.raises(KeyError), evaluating(model):
        raise KeyError
    assert (model.training, model.frozen.training) == (True, False)
