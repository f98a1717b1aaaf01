"""Generated visible/infrared road scenes with a known degradation of each modality.

A scene is painted twice on one canvas of four channels (RGB and infrared): the background with
its distractors, and the background with the objects. Then each modality loses a known amount
`d` of what it shows, 0 nothing and 1 everything (`degrade`). What the scene contains depends
on the random state alone, not on the condition: the same seed under `"night"` and `"fog"` is
the same street.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from .objects import AMBIENT, DRAW, Array, blob, drawn, grid, poster

CLASSES = ("person", "bicycle", "car")

# How much of (RGB, infrared) each condition takes away: the ranges degradation is drawn from.
CONDITIONS: dict[str, tuple[tuple[float, float], tuple[float, float]]] = {
    "day": ((0.0, 0.1), (0.1, 0.3)),  # sun-warmed ground: a little less thermal contrast
    "night": ((0.6, 0.95), (0.0, 0.1)),
    "fog": ((0.4, 0.9), (0.1, 0.3)),
    "crossover": ((0.0, 0.1), (0.6, 0.95)),  # objects as warm as their background
    "glare": ((0.5, 0.9), (0.0, 0.1)),
}

MOST_OBJECTS = 5
MOST_COVERED = 0.25  # share of the smaller of two boxes that the other may cover
NOISE, NOISE_GAIN = 0.012, 0.05  # sensor noise: standard deviation undegraded, and added at d = 1


def scene(
    rng: Generator,
    size: tuple[int, int] = (160, 128),
    condition: str = "day",
    degradation: tuple[float | None, float | None] | None = None,
) -> tuple[Array, Array, NDArray[np.int64], Array]:
    """One aligned pair, everything in it drawn from `rng`.

    `size` is (width, height) in pixels, at least 96 each. `degradation` forces the amounts of
    (RGB, infrared); `None` in it leaves that modality to the condition, and nothing else in the
    scene changes.

    Returns the image (4, height, width) in [0, 1], the tight boxes (n, 4) as x1 y1 x2 y2 in
    pixels, the labels (n,) from 1 (`CLASSES`), and the degradation (2,) of (RGB, infrared).

    Raises ValueError for an unknown condition, a size below 96, or an amount outside [0, 1].
    """
    if condition not in CONDITIONS:
        raise ValueError(f"unknown condition {condition!r}; choose from {', '.join(CONDITIONS)}")
    if min(size) < 96:
        raise ValueError(f"size is (width, height) of at least 96 pixels, found {size}")
    forced = (None, None) if degradation is None else degradation
    amounts = np.zeros(2, np.float32)
    for m, ((low, high), amount) in enumerate(zip(CONDITIONS[condition], forced, strict=True)):
        natural = rng.uniform(low, high)  # drawn even if forced: the scene stays the same
        amounts[m] = natural if amount is None else amount
        if not 0 <= amounts[m] <= 1:
            name = ("rgb", "ir")[m]
            raise ValueError(f"degradation of {name} is an amount in [0, 1], found {amount}")
    clean, background, boxes, labels = street(rng, size)
    rgb = degrade(rng, clean[:3], visible_veil(rng, condition, clean), amounts[0])
    ir = degrade(rng, clean[3:], infrared_veil(condition, clean, background), amounts[1])
    return np.concatenate([rgb, ir]), boxes, labels, amounts


def degrade(rng: Generator, clean: Array, veil: Array, amount: float) -> Array:
    """Covers a share `amount` of `clean` (c, H, W) with `veil`, then adds sensor noise.

    Contrast falls as `1 - amount`, edges blur and noise grows with it, and what exceeds [0, 1]
    saturates: at 0 the image is clean but for slight noise, at 1 only the veil is left.
    """
    d = np.float32(amount)
    image = rng.standard_normal(clean.shape, np.float32)
    image *= np.float32(NOISE + NOISE_GAIN * d)
    image += (1 - d) * ((1 - d) * clean + d * blur(clean))
    image += d * veil
    return np.clip(image, 0, 1, out=image)


def visible_veil(rng: Generator, condition: str, clean: Array) -> Array:
    """What is left of the visible image at full degradation, broadcastable to (3, H, W)."""
    _, height, width = clean.shape
    if condition == "night":
        glow = light(rng, width, height, reach=0.06)
        return np.array([0.55, 0.5, 0.4], np.float32)[:, None, None] * glow + np.float32(0.03)
    if condition == "glare":
        return 0.75 + 0.6 * light(rng, width, height, reach=0.2)
    if condition == "fog":
        return np.float32(rng.uniform(0.6, 0.8)) + 0.08 * smooth(rng, width, height, 3)
    return clean[:3].mean((1, 2), keepdims=True)


def infrared_veil(condition: str, clean: Array, background: Array) -> Array:
    """What is left of the infrared image: the street without its objects, or an even grey."""
    return background[3:] if condition == "crossover" else clean[3:].mean((1, 2), keepdims=True)


# ---- the street ------------------------------------------------------------------------------


def street(rng: Generator, size: tuple[int, int]) -> tuple[Array, Array, Array, NDArray[np.int64]]:
    """An undegraded scene: with objects, without them (both (4, H, W)), boxes and labels."""
    width, height = size
    background, horizon = backdrop(rng, width, height)
    for channels in (slice(0, 3), slice(3, 4)):  # things that one modality alone shows
        for _ in range(rng.integers(0, 3)):
            poster(rng, background, horizon, channels)
        for _ in range(rng.integers(1, 4)):
            blob(rng, background, horizon, channels)
    clean = background.copy()
    boxes, labels = [], []
    for kind, aspect, (x, top, right, foot) in places(rng, width, height, horizon):
        seen = background[:3, top:foot, x:right].mean((1, 2))
        mask, paint = drawn(rng, DRAW[kind], foot - top, aspect, seen)
        h, w = mask.shape
        np.copyto(clean[:, foot - h : foot, x : x + w], paint, where=mask)
        boxes.append((x, foot - h, x + w, foot))
        labels.append(kind + 1)
    drift = np.float32(rng.uniform(-0.08, 0.08))  # a warmer or a colder day
    for image in (clean, background):
        image[3] += drift
        np.clip(image, 0, 1, out=image)
    return clean, background, np.array(boxes, np.float32), np.array(labels, np.int64)


Box = tuple[int, int, int, int]


def places(rng: Generator, width: int, height: int, horizon: int) -> list[tuple[int, float, Box]]:
    """Where objects are: (class, width / height, x1 y1 x2 y2), far ones first."""
    found: list[tuple[int, float, Box]] = []
    wanted = rng.integers(1, MOST_OBJECTS + 1)
    for _ in range(4 * wanted):
        kind = int(rng.integers(len(CLASSES)))
        near = rng.uniform(0.25, 1.0)  # 0 at the horizon, 1 at the lower border
        share = (0.15 + 0.31 * near) * rng.uniform(0.9, 1.1) * (1.0, 0.95, 0.62)[kind]
        aspect = (0.46, 0.98, rng.uniform(1.7, 2.3))[kind]
        tall = round(min(height, 0.8 * width) * share)
        wide = round(tall * aspect)
        x = int(rng.integers(0, width - wide + 1))
        foot = horizon + round(near * (height - horizon))
        box = (x, foot - tall, x + wide, foot)
        if all(covered(box, other) <= MOST_COVERED for *_, other in found):
            found.append((kind, aspect, box))
        if len(found) == wanted:
            break
    return sorted(found, key=lambda place: place[2][3])


def covered(a: Box, b: Box) -> float:
    """Intersection of two boxes over the smaller of their areas."""
    wide = min(a[2], b[2]) - max(a[0], b[0])
    tall = min(a[3], b[3]) - max(a[1], b[1])
    smaller = min((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return max(wide, 0) * max(tall, 0) / smaller


def backdrop(rng: Generator, width: int, height: int) -> tuple[Array, int]:
    """Sky, trees, buildings, verge, road and poles, in all four channels; and the horizon's row."""
    x, y = grid(width, height)
    horizon = round(height * rng.uniform(0.28, 0.4))
    canvas = np.empty((4, height, width), np.float32)

    sky = rng.uniform((0.45, 0.55, 0.65, 0.05), (0.75, 0.8, 0.95, 0.15))
    verge = rng.uniform((0.2, 0.3, 0.1, 0.28), (0.45, 0.5, 0.3, 0.36))
    road = np.append(np.full(3, rng.uniform(0.3, 0.5)), AMBIENT)
    trees = rng.uniform((0.08, 0.18, 0.05, 0.2), (0.25, 0.4, 0.2, 0.3))
    canvas[:, :horizon] = sky[:, None, None]
    canvas[:, horizon:] = verge[:, None, None]

    for _ in range(rng.integers(0, 4)):  # buildings
        left, wide = rng.integers(0, width - 8), round(width * rng.uniform(0.1, 0.3))
        top = round(horizon * rng.uniform(0.1, 0.8))
        wall = rng.uniform((0.25, 0.22, 0.2, 0.2), (0.75, 0.7, 0.65, 0.42))
        canvas[:, top:horizon, left : left + wide] = wall[:, None, None]
        canvas[:3, top + 3 : horizon : 6, left + 2 : left + wide : 5] *= 0.5  # windows
    crowns = horizon * (0.75 + 0.35 * smooth(rng, width, 2, 7)[0])
    rows = slice(0, horizon)
    canvas[:, rows][:, (y[rows] > crowns) & (y[rows] < horizon)] = trees[:, None]

    down = np.maximum(y - horizon, 0) / (height - horizon)  # 0 at the horizon, 1 at the bottom
    middle = width * (rng.uniform(0.3, 0.7) * (1 - down) + 0.5 * down)
    half = width * (0.04 + 0.6 * down)
    aside = np.abs(x - middle)
    on_road = (down > 0) & (aside < half)
    dashes = np.sin(14 / (down + 0.25) + rng.uniform(0, 6.3)) > 0.2
    paint = np.float32(rng.uniform(0.7, 0.95))
    canvas[:, on_road] = road[:, None]
    canvas[:3, on_road & (((aside < 0.02 * half) & dashes) | (aside > 0.95 * half))] = paint

    for _ in range(rng.integers(1, 4)):  # poles
        left, thick = rng.integers(0, width - 3), rng.integers(1, 4)
        foot = horizon + round((height - horizon) * rng.uniform(0.05, 0.5))
        steel = rng.uniform((0.1, 0.1, 0.1, 0.2), (0.6, 0.6, 0.6, 0.5))
        top = round(horizon * rng.uniform(0, 0.6))
        canvas[:, top:foot, left : left + thick] = steel[:, None, None]

    canvas *= 1 + 0.12 * smooth(rng, width, height, 4)  # light and warmth vary over the street
    canvas[:3] += 0.06 * smooth(rng, width, height, 20)
    canvas[3] += 0.025 * smooth(rng, width, height, 20)
    return canvas, horizon


# ---- small tools -----------------------------------------------------------------------------


def light(rng: Generator, width: int, height: int, reach: float) -> Array:
    """The glow (H, W), at most 1, of one to three lamps; `reach` is a share of the width."""
    x, y = grid(width, height)
    glow = np.zeros((height, width), np.float32)
    for _ in range(rng.integers(1, 4)):
        at_x, at_y = rng.uniform(0, width), rng.uniform(0.1, 0.6) * height
        spread = reach * width * rng.uniform(0.6, 1.2)
        glow = np.maximum(glow, np.exp(-np.hypot(x - at_x, y - at_y) / np.float32(spread)))
    return glow


def blur(image: Array) -> Array:
    """Mean of the 5 x 5 neighbourhood in each channel of (c, H, W), borders repeated."""
    padded = np.pad(image, ((0, 0), (2, 2), (2, 2)), mode="edge")
    height, width = image.shape[1:]
    across = padded[:, :, :width].copy()
    for i in range(1, 5):
        across += padded[:, :, i : i + width]
    total = across[:, :height].copy()
    for i in range(1, 5):
        total += across[:, i : i + height]
    total /= 25
    return total


def smooth(rng: Generator, width: int, height: int, cells: int) -> Array:
    """Random waves (H, W) in [-1, 1]: a coarse random grid, interpolated linearly."""
    coarse = rng.random((cells, cells), np.float32) * 2 - 1
    return steps(height, cells) @ coarse @ steps(width, cells).T


@lru_cache(maxsize=32)
def steps(length: int, cells: int) -> Array:
    """Weights (length, cells) of linear interpolation between `cells` points."""
    at = np.linspace(0, cells - 1, length)[:, None]
    return np.maximum(0, 1 - np.abs(at - np.arange(cells))).astype(np.float32)
