"""Scenes: what they hold, and that degradation takes away what it says."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from ragrad_ext.detection.data.objects import DRAW, Array, drawn
from ragrad_ext.detection.data.scenes import (
    CLASSES,
    CONDITIONS,
    NOISE,
    NOISE_GAIN,
    blur,
    degrade,
    scene,
    smooth,
    street,
)

from ...lib.tolerances import BY_HAND, NOISE_MEAN, NOISE_STD

SIZE = (160, 128)
MODALITIES = {"rgb": slice(0, 3), "ir": slice(3, 4)}
AMOUNTS = (0.0, 0.3, 0.6, 0.8, 1.0)


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng((0, seed))


def clean_street(seed: int) -> tuple[Array, Array, Array]:
    """With and without objects, and the boxes, of the scene that `scene(rng(seed))` degrades."""
    dice = rng(seed)
    dice.uniform(size=2)  # the two amounts
    return street(dice, SIZE)[:3]


@pytest.mark.parametrize("condition", CONDITIONS)
def test_what_a_scene_is(condition: str) -> None:
    for seed in range(30):
        image, boxes, labels, degradation = scene(rng(seed), SIZE, condition)
        assert image.shape == (4, 128, 160)
        assert image.dtype == boxes.dtype == degradation.dtype == np.float32
        assert labels.dtype == np.int64
        assert image.min() >= 0
        assert image.max() <= 1
        assert 1 <= len(boxes) == len(labels) <= 5
        assert set(labels) <= {1, 2, 3}
        assert (boxes[:, :2] >= 0).all()
        assert (boxes[:, 2:] <= SIZE).all()
        assert (boxes[:, 2:] - boxes[:, :2]).min() >= 10
        for amount, (low, high) in zip(degradation, CONDITIONS[condition], strict=True):
            assert np.float32(low) <= amount <= np.float32(high)


@pytest.mark.parametrize("size", [(96, 96), (384, 288), (97, 333), (640, 96)])
def test_sizes(size: tuple[int, int]) -> None:
    for seed, condition in enumerate([*CONDITIONS] * 4):
        image, boxes, _, _ = scene(rng(seed), size, condition)
        assert image.shape == (4, *size[::-1])
        assert (boxes[:, :2] >= 0).all()
        assert (boxes[:, 2:] <= size).all()
        assert (boxes[:, 2:] - boxes[:, :2]).min() >= 5


def test_same_seed_same_scene_other_seed_another() -> None:
    first, again, other = (scene(rng(s), SIZE, "fog")[0] for s in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_condition_and_amount_leave_the_contents() -> None:
    reference = scene(rng(4), SIZE, "day")
    for condition in CONDITIONS:
        for forced in (None, (0.5, None), (None, 1.0)):
            _, boxes, labels, degradation = scene(rng(4), SIZE, condition, forced)
            assert np.array_equal(boxes, reference[1])
            assert np.array_equal(labels, reference[2])
            natural = scene(rng(4), SIZE, condition)[3]
            for m in range(2):
                wanted = natural[m] if forced is None or forced[m] is None else forced[m]
                assert degradation[m] == np.float32(wanted)


def test_boxes_are_tight_around_what_the_objects_change() -> None:
    """Where there is one object, its box is the extent of all that differs without it."""
    alone = 0
    for seed in range(40):
        clean, background, boxes = clean_street(seed)
        changed = (clean != background).any(0)
        inside = np.zeros_like(changed)
        for x1, y1, x2, y2 in boxes.astype(int):
            inside[y1:y2, x1:x2] = True
        assert not (changed & ~inside).any()
        if len(boxes) == 1:
            rows, columns = changed.any(1).nonzero()[0], changed.any(0).nonzero()[0]
            extent = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
            assert boxes[0].tolist() == extent
            alone += 1
    assert alone >= 5


def test_objects_cover_each_other_little() -> None:
    for seed in range(60):
        boxes = clean_street(seed)[2]
        for i, a in enumerate(boxes):
            for b in boxes[:i]:
                wide = min(a[2], b[2]) - max(a[0], b[0])
                tall = min(a[3], b[3]) - max(a[1], b[1])
                smaller = min((c[2] - c[0]) * (c[3] - c[1]) for c in (a, b))
                assert max(wide, 0) * max(tall, 0) <= 0.4 * smaller  # 0.25 before the tight cut


def test_classes_differ_in_shape() -> None:
    """Silhouettes of one height: a bicycle has holes and two wheels, a person is narrow."""
    for seed in range(10):
        person, bicycle, car = (
            drawn(rng(seed), draw, 50, aspect, np.zeros(3, np.float32))[0]
            for draw, aspect in zip(DRAW, (0.46, 0.98, 2.0), strict=True)
        )
        assert person.shape[1] < 0.6 * person.shape[0]
        assert car.shape[1] > 1.6 * car.shape[0]
        assert bicycle.mean() < 0.5 < car.mean()  # share of the box that is filled
        row = bicycle[round(0.79 * 50)].astype(int)
        assert np.abs(np.diff(row)).sum() >= 6  # two wheels, cut at the hubs: rims with gaps
        assert person[: 50 // 6].any(0).sum() < person[50 // 4 : 50 // 2].any(0).sum()  # a head
    assert len(CLASSES) == len(DRAW) == 3


def test_something_shows_in_one_modality_only() -> None:
    """Posters and reflections: edges of the background that the other modality lacks."""
    only = np.zeros(2)
    for seed in range(20):
        background = clean_street(seed)[1]
        jumps = [
            np.abs(np.diff(background[ch].mean(0), axis=1)) > 0.1 for ch in MODALITIES.values()
        ]
        only += [(jumps[0] & ~jumps[1]).sum(), (jumps[1] & ~jumps[0]).sum()]
    assert (only > 200).all()


# ---- degradation -----------------------------------------------------------------------------


@pytest.mark.parametrize("amount", AMOUNTS)
def test_degrade_by_hand(amount: float) -> None:
    """Two even halves of 0.7 and 0.3 before a veil of 0.5: the means follow the formula."""
    clean = np.full((1, 200, 400), 0.7, np.float32)
    clean[:, :, 200:] = 0.3
    image = degrade(rng(0), clean, np.full((1, 1, 1), 0.5, np.float32), amount)
    left, right = image[:, :, :190], image[:, :, 210:]  # away from the edge, which blurs
    assert left.mean() == pytest.approx(0.5 + 0.2 * (1 - amount), abs=NOISE_MEAN)
    assert right.mean() == pytest.approx(0.5 - 0.2 * (1 - amount), abs=NOISE_MEAN)
    assert left.std() == pytest.approx(NOISE + NOISE_GAIN * amount, rel=NOISE_STD)


def visibility(image: Array, clean: Array, background: Array, boxes: Array) -> float:
    """Mean correlation, over boxes, of an image with the contrast the object really has."""
    found = []
    for x1, y1, x2, y2 in boxes.astype(int):
        part = (slice(None), slice(y1, y2), slice(x1, x2))
        contrast = (clean - background)[part].ravel()
        found.append(np.corrcoef(contrast, image[part].ravel())[0, 1])
    return float(np.mean(found))


@pytest.mark.parametrize("modality", MODALITIES)
@pytest.mark.parametrize("condition", CONDITIONS)
def test_objects_vanish_as_degradation_grows(condition: str, modality: str) -> None:
    seen = []
    for amount in AMOUNTS:
        forced = (amount, None) if modality == "rgb" else (None, amount)
        values = []
        for seed in range(12):
            clean, background, boxes = clean_street(seed)
            image = scene(rng(seed), SIZE, condition, forced)[0]
            ch = MODALITIES[modality]
            values.append(visibility(image[ch], clean[ch], background[ch], boxes))
        seen.append(np.mean(values))
    assert all(a > b + 0.01 for a, b in pairwise(seen)), seen
    assert seen[0] > 0.8
    assert seen[-1] < 0.1


@pytest.mark.parametrize("modality", MODALITIES)
def test_contrast_to_noise_falls_with_degradation(modality: str) -> None:
    """Contrast: the image less the same one without objects; noise: what two draws differ by."""
    ch = MODALITIES[modality]
    ratios = np.zeros(len(AMOUNTS))
    for seed in range(8):
        clean, background, boxes = clean_street(seed)
        veil = clean[ch].mean((1, 2), keepdims=True)
        for i, amount in enumerate(AMOUNTS):
            with_, without = (degrade(rng(seed), s[ch], veil, amount) for s in (clean, background))
            noise = (with_ - degrade(rng(99), clean[ch], veil, amount)).std() / np.sqrt(2)
            x1, y1, x2, y2 = boxes[0].astype(int)
            ratios[i] += np.sqrt(np.square(with_ - without)[:, y1:y2, x1:x2].mean()) / noise
    assert (np.diff(ratios) < 0).all(), ratios
    assert ratios[-1] == pytest.approx(0, abs=BY_HAND)


def test_forcing_one_modality_leaves_the_other() -> None:
    natural = scene(rng(3), SIZE, "day")[0]
    worse = scene(rng(3), SIZE, "day", (None, 0.9))[0]
    assert np.array_equal(natural[:3], worse[:3])
    assert not np.array_equal(natural[3], worse[3])


def test_each_condition_spoils_its_modality() -> None:
    for condition, spoiled in (("night", 0), ("fog", 0), ("glare", 0), ("crossover", 1)):
        for seed in range(10):
            _, _, _, degradation = scene(rng(seed), SIZE, condition)
            assert degradation[spoiled] > degradation[1 - spoiled]


def test_night_is_dark_glare_and_fog_are_bright() -> None:
    day, night, fog, glare = (
        np.mean([scene(rng(s), SIZE, c)[0][:3].mean() for s in range(8)])
        for c in ("day", "night", "fog", "glare")
    )
    assert night < 0.5 * day
    assert fog > 1.2 * day
    assert glare > 1.2 * day


# ---- tools -----------------------------------------------------------------------------------


def test_blur_by_hand() -> None:
    image = np.zeros((1, 7, 9), np.float32)
    image[0, 3, 4] = 25
    expected = np.zeros((7, 9))
    expected[1:6, 2:7] = 1
    assert np.allclose(blur(image)[0], expected)
    assert np.allclose(blur(np.full((2, 6, 6), 0.3, np.float32)), 0.3)


def test_smooth_stays_in_bounds_and_has_no_steps() -> None:
    waves = smooth(rng(0), 160, 128, 4)
    assert waves.shape == (128, 160)
    assert np.abs(waves).max() <= 1
    assert np.abs(np.diff(waves, axis=1)).max() <= 2 * 3 / 159 + 1e-6  # 2 over a cell of 53 pixels


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((160, 128), "rain"), "unknown condition 'rain'; choose from day, night, fog"),
        (((160, 64), "day"), r"at least 96 pixels, found \(160, 64\)"),
        ((SIZE, "day", (1.2, None)), r"degradation of rgb is an amount in \[0, 1\], found 1.2"),
        ((SIZE, "day", (None, -0.1)), "degradation of ir .* found -0.1"),
        ((SIZE, "day", (float("nan"), 0)), "degradation of rgb .* found nan"),
    ],
)
def test_bad_input(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        scene(rng(0), *arguments)
