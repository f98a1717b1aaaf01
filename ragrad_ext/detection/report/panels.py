"""Detections and saliency drawn on both images of a pair, as in the paper's Fig. 1, 4 and 5.

Images are embedded once, as JPEG; boxes, labels and marks are svg on top of them, so that they stay
sharp at any size and each tells its class, score and verdict on hover.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from PIL import Image

from ..evaluation.matching import Matches, match
from .charts import Style
from .examples import Example, Pixels

Spot = tuple[float, float]


MOST_FALSE = 8  # false positives drawn on an image: a detector hardly trained finds hundreds
WIDE = 384.0  # an image's width in the units that marks are drawn in, whatever its pixels

ICONS = (
    ("truth", "", "ground truth"),
    ("hit", "", "right class, right place"),
    ("wrong", "W", "wrong class"),
    ("miss", "M", "missed"),
    ("false", "F", "false positive"),
)


class Mark(NamedTuple):
    """A box on an image: its kind (of `ICONS`), corners in pixels, short and long words."""

    kind: str
    box: Sequence[float]
    text: str
    tip: str


def legend() -> str:
    """The kinds of boxes, in words, colours, line styles and letters."""
    parts = []
    for kind, letter, words in ICONS:
        box = '<rect class="halo" x="3" y="4" width="20" height="13"/>'
        box += box.replace(' class="halo"', "")
        width = 48 if letter else 26
        svg = f'<svg class="icon mark {kind}" viewBox="0 0 {width} 20" aria-hidden="true">{box}'
        svg += (_triangle(26, 1.5, letter) if letter else "") + "</svg>"
        parts.append(f'<span class="on">{svg}{words}</span>')
    return f'<div class="key">{"".join(parts)}</div>'


def _triangle(x: float, y: float, letter: str) -> str:
    """A triangle of 20 x 17 units with its left end at x and its top at y, a letter in it."""
    path = f'<path d="M{x + 10:.1f} {y:.1f}l10 17h-20z"/>'
    return f'{path}<text x="{x + 10:.1f}" y="{y + 14.5:.1f}">{letter}</text>'


class Layout:
    """Places labels so that they do not overlap earlier ones, where there is room."""

    def __init__(self, height: float) -> None:
        self.height = height
        self.taken: list[tuple[float, float, float, float]] = []

    def place(self, width: float, height: float, spots: Sequence[Spot]) -> Spot:
        """The top left corner of a width x height box: the first of `spots` that is free."""
        inside = [
            (min(max(x, 1.0), WIDE - width - 1), min(max(y, 1.0), self.height - height - 1))
            for x, y in spots
        ]
        free = (
            (x, y)
            for x, y in inside
            if all(
                x + width <= left or right <= x or y + height <= top or bottom <= y
                for left, top, right, bottom in self.taken
            )
        )
        x, y = next(free, inside[0])
        self.taken.append((x, y, x + width, y + height))
        return x, y


def _box(mark: Mark, scale: float, style: str) -> str:
    """The mark's box as svg, `scale` units a pixel."""
    x1, y1, x2, y2 = (scale * float(v) for v in mark.box)
    shape = f'x="{x1:.1f}" y="{y1:.1f}" width="{x2 - x1:.1f}" height="{y2 - y1:.1f}"'
    title = f"<title>{escape(mark.tip)}</title>"
    rects = f'<rect class="halo" {shape}/><rect {shape}/>'
    return f'<g class="{style} {mark.kind}">{title}{rects}</g>'


def _words(mark: Mark, scale: float, layout: Layout) -> str:
    """The mark's label, and its triangle if it is an error, near the box."""
    x1, y1, x2, y2 = (scale * float(v) for v in mark.box)
    svg = ""
    if letter := next(letter for kind, letter, _ in ICONS if kind == mark.kind):
        middle = (x1 + x2) / 2 - 10  # below the box, pointing at it
        spots = [(middle, y2 + 1), (x2 + 1, y2 - 17), (x1 - 21, y2 - 17), (middle, y1 - 18)]
        svg = _triangle(*layout.place(20, 17, spots), letter)
    width = 6.1 * len(mark.text)
    spots = [(x1, y1 - 13), (x2 - width, y1 - 13), (x1 + 2, y1 + 2), (x1, y2 + 2)]
    x, y = layout.place(width, 11, [*spots, (x2 + 2, y1), (x1 - width - 2, y1)])
    svg += f'<text x="{x:.1f}" y="{y + 9:.1f}">{escape(mark.text)}</text>'
    return f'<g class="mark {mark.kind}">{svg}</g>'


def panel(
    image: str,
    shape: tuple[int, ...],
    marks: Sequence[Mark],
    caption: str,
    description: str,
    *,
    words: bool = True,
) -> str:
    """An image (`embed`, `again`) of `shape` (H, W, ...) pixels with marks; caption: HTML."""
    scale = WIDE / shape[1]
    height = shape[0] * scale
    order = (
        "truth",
        "false",
        "hit",
        "wrong",
        "miss",
    )  # objects are drawn over false positives
    by_kind = sorted(marks, key=lambda mark: order.index(mark.kind))
    drawn = [_box(mark, scale, "mark" if words else "mark thin") for mark in by_kind]
    if words:
        layout = Layout(height)
        # Over every box; the topmost box chooses its place first.
        drawn += reversed([_words(mark, scale, layout) for mark in reversed(by_kind)])
    return (
        f'<figure><svg viewBox="0 0 {WIDE:g} {height:g}" role="img" '
        f'aria-label="{escape(description)}">{image}{"".join(drawn)}</svg>'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def embed(pixels: Pixels, key: str = "") -> str:
    """Pixels (H, W, 3) in [0, 1] as an svg image; with a `key`, `again` can repeat it."""
    height, width = pixels.shape[:2]
    photo = Image.fromarray((np.nan_to_num(pixels).clip(0, 1) * 255).round().astype(np.uint8))
    photo.thumbnail((640, 640))  # enough for a screen; a report stays a few MB
    data = io.BytesIO()
    photo.save(data, "JPEG", quality=88)
    code = base64.b64encode(data.getvalue()).decode()
    size = f'width="{WIDE:g}" height="{height * WIDE / width:g}" preserveAspectRatio="none"'
    name = f'id="{key}" ' if key else ""
    return f'<image {name}{size} href="data:image/jpeg;base64,{code}"/>'


def again(key: str) -> str:
    return f'<use href="#{key}"/>'


def panels(columns: int, items: Sequence[str]) -> str:
    return f'<div class="panels" style="--n: {columns}" tabindex="0">{"".join(items)}</div>'


def overlay(grey: Pixels, saliency: Pixels) -> Pixels:
    """A map (H, W) in [0, 1] over a grey image: bright colours where it is high, (H, W, 3)."""
    value = np.nan_to_num(saliency).clip(0, 1)[..., None]
    colour = matplotlib.colormaps["inferno"](0.25 + 0.75 * value[..., 0])[..., :3]
    return (0.65 * grey[..., None] * (1 - value) + colour * value).astype(np.float32)


def ramp(low: str, high: str) -> str:
    """The labelled colour scale of `overlay`, over a middle grey."""
    values = np.linspace(0, 1, 9, dtype=np.float32)[None]
    stops = (overlay(np.full_like(values, 0.35), values)[0] * 255).round().astype(int)
    colours = ", ".join("rgb({} {} {})".format(*stop) for stop in stops.tolist())
    bar = f'<span class="ramp" style="background: linear-gradient(90deg, {colours})"></span>'
    return f'<div class="key"><span>{escape(low)}{bar}{escape(high)}</span></div>'


def truth_marks(target: Mapping[str, Any], classes: Sequence[str]) -> list[Mark]:
    """Every ground truth of a target."""
    names = [_name(label, classes) for label in target["labels"].tolist()]
    boxes = target["boxes"].tolist()
    return [Mark("truth", box, name, name) for box, name in zip(boxes, names, strict=True)]


def outcome_marks(
    found: Mapping[str, Any], target: Mapping[str, Any], matches: Matches, classes: Sequence[str]
) -> list[Mark]:
    """What became of the detections and of every ground truth, as `match` has it.

    Of the false positives only the surest `MOST_FALSE` get a mark.
    """
    boxes, scores = found["boxes"].tolist(), found["scores"].tolist()
    names = [_name(label, classes) for label in found["labels"].tolist()]
    truth = truth_marks(target, classes)

    def mark(kind: str, d: int, verdict: str) -> Mark:
        text = f"{names[d]} {scores[d]:.2f}".replace(" 0.", " .")
        return Mark(kind, boxes[d], text, f"{text}: {verdict}")

    return [
        *(mark("hit", d, "right class and place") for d, _ in matches.hits),
        *(mark("wrong", d, f"wrong class, is {truth[t].text}") for d, t in matches.wrong_class),
        *(mark("false", d, "false positive") for d in matches.false_positives[:MOST_FALSE]),
        *(truth[t]._replace(kind="miss", tip=f"{truth[t].text}: missed") for t in matches.misses),
    ]


def in_words(matches: Matches) -> str:
    """The outcomes counted: all of them, drawn or not."""
    hits, wrong, false, missed = (len(found) for found in matches)
    words = f"{hits} right, {wrong} wrong class, {missed} missed, {false} false"
    return words + f" ({MOST_FALSE} drawn)" * (false > MOST_FALSE)


def detections(
    key: str, example: Example, look: Mapping[str, Style], classes: Sequence[str], score: float
) -> str:
    """Ground truth and each method's detections, on the visible image and on the infrared one.

    `key` names the example in the page; `look` gives the methods in order.
    """
    truth = truth_marks(example.target, classes)
    columns = [("Ground truth", f"{len(truth)} object" + "s" * (len(truth) != 1), truth)]
    for method, style in look.items():
        if (found := example.detections.get(method)) is not None:
            matches = match(found, example.target, score=score)
            marks = outcome_marks(found, example.target, matches, classes)
            columns.append((style.label, in_words(matches), marks))
    items = []
    for name, pixels in zip(("visible", "infrared"), example.views(), strict=True):
        image = embed(pixels, f"{key}-{name}")
        for heading, words, marks in columns:
            caption = f"<b>{escape(heading)}</b>, {name}<br>{words}"
            description = f"{example.title}, {name} image, {heading}: {words}"
            items.append(panel(image, pixels.shape, marks, caption, description))
            image = again(f"{key}-{name}")
    return _heading(example) + panels(len(columns), items)


def saliency(example: Example, look: Mapping[str, Style], classes: Sequence[str]) -> str:
    """For each method: the gradient saliency of either modality, and LayerCAM of both fused."""
    visible, infrared = (view.mean(axis=2) for view in example.views())
    truth = truth_marks(example.target, classes)
    items = []
    for method, style in look.items():
        if (maps := example.saliency.get(method)) is not None:
            rows = (
                ("visible", "gradient saliency on the visible image", visible),
                ("infrared", "gradient saliency on the infrared image", infrared),
                (
                    "fused",
                    "LayerCAM of the fused features, on both images' mean",
                    (visible + infrared) / 2,
                ),
            )
            for (name, words, grey), values in zip(rows, maps, strict=True):
                image = embed(overlay(grey, np.asarray(values, dtype=np.float32)))
                caption = f"<b>{escape(style.label)}</b>, {name}<br>{words}"
                description = f"{example.title}, {style.label}: {words}"
                items.append(panel(image, grey.shape, truth, caption, description, words=False))
    return _heading(example) + panels(3, items)


def _heading(example: Example) -> str:
    html = f"<h3>{escape(example.title)}</h3>"
    degradation = [float(v) for v in example.target.get("degradation", ())]
    if degradation and all(map(math.isfinite, degradation)):
        rgb, ir = degradation
        html += (
            f'<p class="note">Degraded on purpose: visible {rgb:.0%}, infrared {ir:.0%} '
            "(at 100% nothing is left).</p>"
        )
    return html


def _name(label: int, classes: Sequence[str]) -> str:
    return classes[label - 1] if 1 <= label <= len(classes) else f"class {label}"
