"""Hand-worked flips, scales and crops, and the law that a drawn rectangle stays in its box."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator, Tensor

from ragrad_ext.detection.data.transforms import PairedAugment

from ...lib.tolerances import RESIZED_MEAN

Box = tuple[float, float, float, float]


def dice(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def target(*boxes: Box) -> dict[str, Any]:
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.arange(1, len(boxes) + 1),
        "image_id": 7,
        "condition": "night",
        "degradation": torch.tensor([0.8, 0.1]),
    }


def marked(width: int, height: int, box: Box) -> Tensor:
    """Zeros with a rectangle of ones in all four channels."""
    image = torch.zeros(4, height, width)
    x1, y1, x2, y2 = (int(v) for v in box)
    image[:, y1:y2, x1:x2] = 1
    return image


def fixed(scale: float, flip: float = 0.0, **options: Any) -> PairedAugment:
    return PairedAugment(flip=flip, scale=(scale, scale), jitter=0, **options)


def test_flip_by_hand() -> None:
    image = torch.arange(4 * 2 * 3, dtype=torch.float32).reshape(4, 2, 3)
    flipped, after = fixed(1, flip=1)(image, target((0, 0, 2, 2)), dice())
    assert flipped[0].tolist() == [[2, 1, 0], [5, 4, 3]]
    assert flipped[3].tolist() == [[20, 19, 18], [23, 22, 21]]
    assert after["boxes"].tolist() == [[1, 0, 3, 2]]


def test_nothing_to_do_changes_nothing() -> None:
    image, before = torch.rand(4, 20, 30), target((3, 4, 9, 12))
    same, after = fixed(1)(image, before, dice())
    assert torch.equal(same, image)
    assert torch.equal(after["boxes"], before["boxes"])


def test_twice_the_size_by_hand() -> None:
    """Scale 2 shows a 10 x 5 window of a 20 x 10 image that holds its own coordinates."""
    x, y = torch.arange(20.0) + 0.5, torch.arange(10.0) + 0.5
    image = torch.stack([x.expand(10, 20)] * 3 + [y[:, None].expand(10, 20)])
    for seed in range(5):
        shown, after = fixed(2, visible=0)(image, target((9, 4, 11, 6)), dice(seed))
        left, top = shown[0, 0, 9] - 4.75, shown[3, 4, 0] - 2.25  # pixel j is at (j + 0.5) / 2
        assert shown.shape == image.shape
        assert left == round(float(left))
        assert torch.allclose(shown[0, 0, 1:-1], left + (torch.arange(1, 19) + 0.5) / 2)
        assert torch.allclose(shown[3, 1:-1, 0], top + (torch.arange(1, 9) + 0.5) / 2)
        x1, y1, x2, y2 = ((v - o) * 2 for v, o in zip((9, 4, 11, 6), (left, top) * 2, strict=True))
        expected = [min(max(v, 0), m) for v, m in zip((x1, y1, x2, y2), (20, 10) * 2, strict=True)]
        assert after["boxes"].tolist() in ([expected], [])  # [] if the window is beside the box


def test_half_the_size_by_hand() -> None:
    """Scale 1/2 shows all of a 20 x 10 image as 10 x 5 pixels, inside the mean of each channel."""
    image = marked(20, 10, (0, 0, 10, 10))
    after_image, after = fixed(0.5)(image, target((4, 2, 8, 8)), dice(1))
    (box,) = after["boxes"].tolist()
    assert (box[2] - box[0], box[3] - box[1]) == (2, 3)
    assert after_image.mean((1, 2)).tolist() == pytest.approx([0.5] * 4, abs=RESIZED_MEAN)
    assert (after_image - 0.5).abs().lt(0.01).sum() > 4 * 100  # the mean fills the rest


def test_crop_by_hand() -> None:
    """Any 8 x 6 window of a 10 x 6 image: x moves by 0, 1 or 2, y not at all."""
    image = torch.arange(10.0).expand(4, 6, 10)
    seen = set()
    for seed in range(20):
        after_image, after = fixed(1, crop=(8, 6))(image, target((2, 1, 9, 5)), dice(seed))
        left = int(after_image[0, 0, 0])
        seen.add(left)
        assert after_image.shape == (4, 6, 8)
        assert after["boxes"].tolist() == [[2 - left, 1, min(9 - left, 8), 5]]
    assert seen == {0, 1, 2}


def test_crop_larger_than_the_image_pads() -> None:
    after_image, after = fixed(1, crop=(30, 20))(marked(10, 10, (2, 2, 8, 8)), target(), dice(2))
    assert after_image.shape == (4, 20, 30)
    assert (after_image == 1).sum() == 4 * 36
    assert after["boxes"].shape == (0, 4)


def test_boxes_with_little_left_are_removed_with_their_labels() -> None:
    """The window is the left half or so; what it cuts decides, by the share that stays."""
    image = torch.zeros(4, 10, 40)
    boxes = target((0, 0, 4, 10), (5, 0, 15, 10), (36, 0, 40, 10), (3, 3, 3, 8), (4, 4, 5, 9))
    for seed in range(10):
        _, after = fixed(1, crop=(10, 10), visible=0.5)(image, boxes, dice(seed))
        kept = dict(zip(after["labels"].tolist(), after["boxes"].tolist(), strict=True))
        assert 4 not in kept  # no area
        assert 5 not in kept  # one pixel wide
        if 2 in kept:
            assert kept[2][2] - kept[2][0] >= 5  # half of its 10 pixels
        assert len(kept) == len(after["boxes"])


def test_everything_else_in_the_target_stays() -> None:
    before = target((2, 2, 9, 9))
    image = torch.rand(4, 16, 16)
    kept = image.clone(), before["boxes"].clone()
    _, after = PairedAugment(flip=1)(image, before, dice())
    assert (after["image_id"], after["condition"]) == (7, "night")
    assert torch.equal(after["degradation"], before["degradation"])
    assert torch.equal(image, kept[0])
    assert torch.equal(before["boxes"], kept[1])


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    low=st.floats(0.4, 1.5),
    ratio=st.floats(1, 2),
    crop=st.none() | st.tuples(st.integers(24, 90), st.integers(24, 90)),
    corner=st.tuples(st.integers(0, 40), st.integers(0, 20)),
    side=st.tuples(st.integers(8, 24), st.integers(8, 24)),
)
def test_boxes_stay_tight_and_modalities_together(
    seed: int,
    low: float,
    ratio: float,
    crop: tuple[int, int] | None,
    corner: tuple[int, int],
    side: tuple[int, int],
) -> None:
    box = (*corner, corner[0] + side[0], corner[1] + side[1])
    augment = PairedAugment(scale=(low, low * ratio), crop=crop, jitter=0, visible=0.0)
    image, after = augment(marked(64, 48, box), target(box), dice(seed))
    assert image.shape == (4, *(crop or (64, 48))[::-1])
    assert (image == image[:1]).all()  # the same mark in all four channels
    drawn = (image[0] > 0.6).nonzero()  # half of the mark, or more
    for x1, y1, x2, y2 in after["boxes"].tolist():
        top, left = drawn.min(0).values.tolist()
        bottom, right = (drawn.max(0).values + 1).tolist()
        assert max(abs(left - x1), abs(top - y1), abs(right - x2), abs(bottom - y2)) <= 1.01
    if not len(after["boxes"]) and len(drawn):  # only a sliver may go without a box
        assert (drawn.max(0).values - drawn.min(0).values + 1).min() <= 3


def test_same_generator_state_same_result_and_global_state_untouched() -> None:
    augment, image, boxes = PairedAugment(), torch.rand(4, 32, 32), target((5, 5, 20, 20))
    state = torch.get_rng_state()
    one, first = augment(image, boxes, dice(5))
    two, second = augment(image, boxes, dice(5))
    other, _ = augment(image, boxes, dice(6))
    assert torch.equal(one, two)
    assert torch.equal(first["boxes"], second["boxes"])
    assert not torch.equal(one, other)
    assert torch.equal(state, torch.get_rng_state())


def test_flips_as_often_as_told() -> None:
    image, boxes = torch.zeros(4, 8, 8), target((0, 0, 4, 8))
    generator = dice(0)
    augment = PairedAugment(flip=0.25, scale=(1, 1))
    flips = sum(int(augment(image, boxes, generator)[1]["boxes"][0, 0]) == 4 for _ in range(400))
    assert 70 <= flips <= 130  # 100 expected, standard deviation 8.7


def test_jitter_scales_each_modality_by_itself() -> None:
    image = torch.full((4, 8, 8), 0.5)
    after, _ = PairedAugment(flip=0, scale=(1, 1), jitter=0.4)(image, target(), dice(0))
    factors = after.mean((1, 2)) / 0.5
    assert factors[0] == factors[1] == factors[2] != factors[3]
    assert ((factors >= 0.6) & (factors <= 1.4)).all()
    bright, _ = PairedAugment(jitter=0.4)(torch.ones(4, 8, 8), target(), dice(0))
    assert bright.max() <= 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"flip": 1.5}, r"flip must be between 0 and 1, found 1.5"),
        ({"visible": -0.1}, r"visible must be between 0 and 1, found -0.1"),
        ({"scale": (1.2, 0.8)}, r"scale must be .*found \(1.2, 0.8\)"),
        ({"scale": (0, 1)}, "0 < low <= high"),
        ({"scale": (1, float("nan"))}, "scale must be"),
        ({"crop": (0, 10)}, r"crop must be \(width, height\)"),
        ({"jitter": 1}, r"jitter must be 0 or more and below 1"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PairedAugment(**options)
