"""Weight shapes of one backbone of real models, by formula; each list is one side of a pair.

Only weights with at least two dimensions, which are what is paired; no classification heads.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

Shape = tuple[int, ...]


def resnet50() -> list[Shape]:
    """ResNet-50 without fc: 53 convolutions, 23.45 M weights."""
    shapes: list[Shape] = [(64, 3, 7, 7)]
    inputs = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            shapes += [(width, inputs, 1, 1), (width, width, 3, 3), (4 * width, width, 1, 1)]
            if block == 0:
                shapes.append((4 * width, inputs, 1, 1))
            inputs = 4 * width
    return shapes


def cspdarknet_l() -> list[Shape]:
    """The backbone of YOLOv5l (release 6): Conv, four times (Conv, C3), SPPF; 26.55 M weights."""
    channels = (64, 128, 256, 512, 1024)  # times a width multiple, which is 1 for an l
    shapes: list[Shape] = [(channels[0], 3, 6, 6)]
    for inputs, outputs, repeats in zip(channels, channels[1:], (3, 6, 9, 3), strict=False):
        half = outputs // 2
        shapes.append((outputs, inputs, 3, 3))
        # C3: two ways in, bottlenecks on one of them, one way out of both
        shapes += [(half, outputs, 1, 1), (half, outputs, 1, 1), (outputs, 2 * half, 1, 1)]
        shapes += [(half, half, 1, 1), (half, half, 3, 3)] * repeats  # times a depth multiple of 1
    last = channels[-1]
    return [*shapes, (last // 2, last, 1, 1), (last, 2 * last, 1, 1)]  # SPPF


def convnext_l() -> list[Shape]:
    """ConvNeXt-L: 7x7 depthwise convolutions of 49 weights a row, and wide linear layers."""
    widths = (192, 384, 768, 1536)
    shapes: list[Shape] = [(widths[0], 3, 4, 4)]
    for stage, (c, blocks) in enumerate(zip(widths, (3, 3, 27, 3), strict=True)):
        if stage:
            shapes.append((c, widths[stage - 1], 2, 2))
        shapes += [(c, 1, 7, 7), (4 * c, c), (c, 4 * c)] * blocks
    return shapes


def vit(width: int, hidden: int, blocks: int, patch: int) -> list[Shape]:
    """A vision transformer: patch embedding, then attention and two linear layers a block."""
    block: list[Shape] = [(3 * width, width), (width, width), (hidden, width), (width, hidden)]
    return [(width, 3, patch, patch), *(block * blocks)]


def ladder(weights: int) -> list[Shape]:
    """About ``weights`` weights in layers of one shape, of stage 3 of ResNet-50: cost by size."""
    return [(256, 1024, 1, 1)] * max(1, round(weights / 2**18))


def tiny(layers: int) -> list[Shape]:
    """So little work that what a call costs is its host code."""
    return [(4, 8)] * layers


class Model(NamedTuple):
    """A real model: its name in the tables, and the weights of one backbone."""

    label: str
    shapes: Callable[[], list[Shape]]


MODELS = {
    "resnet50": Model("ResNet-50", resnet50),
    "cspdarknet_l": Model("CSPDarknet-L", cspdarknet_l),
    "convnext_l": Model("ConvNeXt-L", convnext_l),
    "vit_l": Model("ViT-L/16", lambda: vit(1024, 4096, 24, 16)),
    "vit_g": Model("ViT-g/14", lambda: vit(1408, 6144, 40, 14)),  # 1 B weights
}
LADDER: dict[str, Callable[[], list[Shape]]] = {
    f"ladder_{name}": lambda size=size: ladder(size)  # type: ignore[misc]
    for name, size in (
        ("1M", 2**20),
        ("4M", 2**22),
        ("16M", 2**24),
        ("64M", 2**26),
        ("256M", 2**28),
        ("1B", 2**30),
    )
}
TINY: dict[str, Callable[[], list[Shape]]] = {
    f"tiny_{n}": lambda n=n: tiny(n)  # type: ignore[misc]
    for n in (53, 300)
}
SHAPES = {name: model.shapes for name, model in MODELS.items()} | LADDER | TINY


def count(shapes: list[Shape]) -> int:
    """Weights on one side."""
    return sum(math.prod(s) for s in shapes)
