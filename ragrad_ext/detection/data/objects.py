"""Objects and distractors of the scenes, painted in RGB and infrared at once.

An object is drawn part by part in coordinates that are 1 high: y runs down from its top, x is 0 in
its middle. Each part has a colour and a heat, which is relative to the road.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Array = NDArray[np.float32]
Mask = NDArray[np.bool_]
Paint = Callable[..., None]
Colours = list[Array]

AMBIENT = 0.4  # infrared value of the road; heat of objects is relative to it


def drawn(
    rng: Generator,
    draw: Callable[[Generator, Array, Array, Paint, Colours], None],
    tall: int,
    aspect: float,
    seen: Array,
) -> tuple[Mask, Array]:
    """An object `tall` pixels high, cut to its outermost: mask (h, w), paint (4, h, w).

    Of four colours it has those that differ most from `seen`, the mean colour (3,) around it.
    """
    wide = round(tall * aspect)
    across, down = grid(wide, tall)
    x, y = (across - np.float32(wide / 2)) / np.float32(tall), down / np.float32(tall)
    if rng.random() < 0.5:
        x = -x  # faces the other way
    mask = np.zeros((tall, wide), np.bool_)
    paint = np.zeros((4, tall, wide), np.float32)

    def part(where: Mask, colour: Array, heat: float) -> None:
        mask[where] = True
        values = np.array([*colour, AMBIENT + heat], np.float32)
        np.copyto(paint, values[:, None, None], where=where)

    colours = rng.random((4, 3), np.float32)
    order = np.argsort(-np.abs(colours - seen).mean(1))
    draw(rng, x, y, part, [colours[i] for i in order])
    stripes = np.sin(rng.uniform(10, 60) * (y + rng.uniform(-1, 1) * x) + rng.uniform(0, 6.3))
    paint[:3] *= 1 + np.float32(rng.uniform(0, 0.25)) * stripes
    paint[3] *= 1 + 0.1 * (0.5 - y)
    rows, columns = extent(mask, 0), extent(mask, 1)
    return mask[rows, columns], paint[:, rows, columns]


def person(rng: Generator, x: Array, y: Array, part: Paint, colours: Colours) -> None:
    """Upright: a head on an elliptic body with arms, on two legs."""
    body = rng.uniform(0.2, 0.4)
    step, swing = rng.uniform(0.05, 0.15), rng.uniform(0.17, 0.19)
    for side in (-1, 1):
        part(capsule(x, y, (side * 0.05, 0.5), (side * step, 0.96), 0.055), colours[1], 0.7 * body)
        part(capsule(x, y, (side * 0.1, 0.25), (side * swing, 0.48), 0.04), colours[0], 0.8 * body)
    part((x / 0.15) ** 2 + ((y - 0.37) / 0.21) ** 2 < 1, colours[0], body)
    part(x**2 + (y - 0.09) ** 2 < 0.09**2, skin(rng), body + 0.12)


def bicycle(rng: Generator, x: Array, y: Array, part: Paint, colours: Colours) -> None:
    """Seen from the side: two wheels, a frame of cold metal and a warm rider leaning forward."""
    metal, body = -rng.uniform(0.12, 0.25), rng.uniform(0.2, 0.4)
    for hub in (-0.27, 0.27):
        radius = np.hypot(x - hub, y - 0.79)
        part((radius < 0.21) & (radius > 0.14), colours[1], metal)
    pedal, seat, bar = (0.0, 0.79), (-0.1, 0.55), (0.19, 0.52)
    tubes = ((pedal, seat), (pedal, bar), (seat, bar), (bar, (0.27, 0.79)), (pedal, (-0.27, 0.79)))
    for start, end in tubes:
        part(capsule(x, y, start, end, 0.03), colours[1], metal)
    shoulder, knee = (0.06, 0.25), (0.08, rng.uniform(0.58, 0.66))
    part(capsule(x, y, seat, knee, 0.055), colours[2], 0.8 * body)
    part(capsule(x, y, knee, (0.0, 0.82), 0.045), colours[2], 0.8 * body)
    part(capsule(x, y, seat, shoulder, 0.095), colours[0], body)
    part(capsule(x, y, shoulder, bar, 0.04), colours[0], 0.8 * body)
    part((x - 0.1) ** 2 + (y - 0.09) ** 2 < 0.09**2, skin(rng), body + 0.12)


def car(rng: Generator, x: Array, y: Array, part: Paint, colours: Colours) -> None:
    """Seen from the side: body, cabin with cool windows, warm wheels, sometimes a warm engine."""
    half = x.max() - 0.02
    body = rng.uniform(0.1, 0.2) * rng.choice((-1, 1))  # driven, or parked under a cold sky
    slant = np.maximum(0.42 - y, 0) * rng.uniform(0.5, 0.9)
    roof = rng.uniform(0.5, 0.62) * half
    glass = rng.uniform(0.05, 0.25, 3).astype(np.float32)
    part((np.abs(x) < roof - slant + 0.1) & (y < 0.45), colours[0], body)
    part((np.abs(x) < roof - slant) & (y > 0.1) & (y < 0.38), glass, body - 0.1)
    part((np.abs(x) < 0.04) & (y < 0.4), colours[0], body)
    part(capsule(x, y, (0.24 - half, 0.6), (half - 0.24, 0.6), 0.24), colours[0], body)
    if body > 0:
        bonnet = (x > 0.55 * half) & (x < 0.95 * half) & (np.abs(y - 0.56) < 0.1)
        part(bonnet, colours[0], body + 0.25)
    for hub in (-0.58 * half, 0.58 * half):
        radius = np.hypot(x - hub, y - 0.81)
        part(radius < 0.19, np.full(3, 0.06, np.float32), max(body, 0) + 0.18)
        part(radius < 0.08, np.full(3, 0.6, np.float32), max(body, 0) + 0.1)


DRAW = (person, bicycle, car)  # as scenes.CLASSES names them


def skin(rng: Generator) -> Array:
    return np.array([0.95, 0.75, 0.62], np.float32) * np.float32(rng.uniform(0.35, 1.0))


# ---- things that one modality alone shows -----------------------------------------------------


def poster(rng: Generator, canvas: Array, horizon: int, channels: slice) -> None:
    """A framed person, bicycle or car in one modality: a poster, or a warm reflection in glass."""
    _, height, width = canvas.shape
    kind = rng.integers(len(DRAW))
    board = rng.uniform((0.2, 0.2, 0.2, 0.15), (0.95, 0.95, 0.95, 0.3)).astype(np.float32)
    tall = round(min(height, 0.8 * width) * rng.uniform(0.14, 0.28))
    mask, paint = drawn(rng, DRAW[kind], tall, (0.46, 0.98, 1.8)[kind], board[:3])
    h, w = mask.shape
    x = rng.integers(0, width - w - 3)
    y = rng.integers(horizon // 3, height - h - 3)
    canvas[channels, y : y + h + 4, x : x + w + 4] = 1 - board[channels, None, None]
    canvas[channels, y + 1 : y + h + 3, x + 1 : x + w + 3] = board[channels, None, None]
    inside = canvas[channels, y + 2 : y + h + 2, x + 2 : x + w + 2]
    np.copyto(inside, paint[channels], where=mask)


def blob(rng: Generator, canvas: Array, horizon: int, channels: slice) -> None:
    """A line or an ellipse in one modality: a puddle or a marking, a warm pipe or an animal."""
    _, height, width = canvas.shape
    x, y = grid(width, height)
    colour = rng.uniform((0, 0, 0, 0.5), (1, 1, 1, 0.85)).astype(np.float32)
    at_x, at_y = rng.uniform(0, width), rng.uniform(horizon, height)
    if rng.random() < 0.4:
        end = (at_x + rng.uniform(-0.5, 0.5) * width, at_y + rng.uniform(-0.1, 0.1) * height)
        where = capsule(x, y, (at_x, at_y), end, rng.uniform(0.8, 1.6))
    else:
        wide, tall = rng.uniform(0.02, 0.08, 2) * height
        where = ((x - at_x) / wide) ** 2 + ((y - at_y) / tall) ** 2 < 1
    np.copyto(canvas[channels], colour[channels, None, None], where=where)


# ---- shapes -----------------------------------------------------------------------------------


def capsule(
    x: Array, y: Array, start: tuple[float, float], end: tuple[float, float], radius: float
) -> Mask:
    """Points within `radius` of the segment between two (x, y) points."""
    dx, dy = end[0] - start[0], end[1] - start[1]
    along = np.clip(((x - start[0]) * dx + (y - start[1]) * dy) / (dx * dx + dy * dy), 0, 1)
    return (x - start[0] - along * dx) ** 2 + (y - start[1] - along * dy) ** 2 < radius**2


def extent(mask: Mask, axis: int) -> slice:
    """From the first to the last row or column of (h, w) that holds a True."""
    at = np.flatnonzero(mask.any(1 - axis))
    return slice(at[0], at[-1] + 1)


@lru_cache(maxsize=512)
def grid(width: int, height: int) -> tuple[Array, Array]:
    """Coordinates of the pixel centres: x (1, width) and y (height, 1)."""
    x = np.arange(width, dtype=np.float32)[None, :] + np.float32(0.5)
    return x, np.arange(height, dtype=np.float32)[:, None] + np.float32(0.5)
