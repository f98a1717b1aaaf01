"""Augmentation of a visible/infrared pair: both images and the boxes move as one."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

Target = dict[str, Any]

LEAST_SIDE = 2.0  # pixels; a box thinner than this after the cut is dropped


class PairedAugment:
    """Scales, cuts out a window of fixed size, flips, and varies the brightness.

    - `scale`: the pair is enlarged by a factor between the two, even in its logarithm.
    - `crop`: (width, height) of the window, in pixels, at a random place; None is the size of
      the image given, so that batches keep one size. What the scaled image does not reach is
      filled with the mean of each channel.
    - `flip`: probability of a left-right flip.
    - `jitter`: each modality by itself is multiplied by up to 1 ± jitter. A factor, and no
      offset: it would blacken what a night leaves.
    - `visible`: boxes are cut to the window, and dropped if less than this share of their area
      remains.

    It keeps no random state: a generator in the same state gives the same result.

    Raises ValueError for a probability or share outside [0, 1], a scale that is not 0 < low <=
    high, a window without pixels, or a jitter outside [0, 1).
    """

    def __init__(
        self,
        flip: float = 0.5,
        scale: tuple[float, float] = (0.8, 1.25),
        crop: tuple[int, int] | None = None,
        jitter: float = 0.2,
        visible: float = 0.3,
    ) -> None:
        for name, share in (("flip", flip), ("visible", visible)):
            if not 0 <= share <= 1:
                raise ValueError(f"{name} must be between 0 and 1, found {share}")
        if not 0 < scale[0] <= scale[1] < math.inf:
            raise ValueError(f"scale must be (low, high) with 0 < low <= high, found {scale}")
        if crop is not None and min(crop) < 1:
            raise ValueError(f"crop must be (width, height) of at least 1 pixel, found {crop}")
        if not 0 <= jitter < 1:
            raise ValueError(f"jitter must be 0 or more and below 1, found {jitter}")
        self.flip, self.scale, self.crop = flip, scale, crop
        self.jitter, self.visible = jitter, visible

    def __call__(
        self, image: Tensor, target: Target, generator: Generator
    ) -> tuple[Tensor, Target]:
        """The augmented (4, H, W) and its target; the arguments are not changed."""
        dice = torch.rand(6, generator=generator, dtype=torch.float64).tolist()
        height, width = image.shape[1:]
        out_width, out_height = self.crop or (width, height)

        low, high = self.scale
        factor = low * (high / low) ** dice[0]
        # The window, in pixels of the image given; whole pixels, so that boxes stay exact.
        wide = max(round(out_width / factor), 1)
        tall = max(round(out_height / factor), 1)
        left = round(dice[1] * (width - wide))  # below 0 where the window is the larger one
        top = round(dice[2] * (height - tall))

        image = resize(window(image, left, top, wide, tall), out_width, out_height)
        boxes = target["boxes"] - target["boxes"].new_tensor([left, top, left, top])
        boxes *= boxes.new_tensor([out_width / wide, out_height / tall] * 2)
        if dice[3] < self.flip:
            image = image.flip(2)
            boxes[:, [0, 2]] = out_width - boxes[:, [2, 0]]
        boxes, kept = cut(boxes, out_width, out_height, self.visible)
        if self.jitter:
            rgb, ir = (1 + self.jitter * (2 * roll - 1) for roll in dice[4:])
            image = (image * image.new_tensor([rgb, rgb, rgb, ir])[:, None, None]).clamp(max=1)
        return image, {**target, "boxes": boxes, "labels": target["labels"][kept]}


def window(image: Tensor, left: int, top: int, wide: int, tall: int) -> Tensor:
    """The (c, tall, wide) part of (c, H, W) at (left, top); outside it, the channels' means."""
    _, height, width = image.shape
    x1, y1 = max(left, 0), max(top, 0)
    x2, y2 = min(left + wide, width), min(top + tall, height)
    if (x2 - x1, y2 - y1) == (wide, tall):
        return image[:, y1:y2, x1:x2]
    part = image.mean((1, 2), keepdim=True).repeat(1, tall, wide)
    part[:, y1 - top : y2 - top, x1 - left : x2 - left] = image[:, y1:y2, x1:x2]
    return part


def resize(image: Tensor, width: int, height: int) -> Tensor:
    """(c, H, W) to (c, height, width), bilinear, averaging where it shrinks."""
    if image.shape[1:] == (height, width):
        return image
    resized = F.interpolate(image[None], (height, width), mode="bilinear", antialias=True)
    return resized[0]


def cut(boxes: Tensor, width: int, height: int, visible: float) -> tuple[Tensor, Tensor]:
    """Boxes (m, 4) cut to the image, and the mask (n,) of those kept.

    Dropped are boxes with less than the share `visible` of their area, or no area, left.
    """
    x1, x2 = boxes[:, [0, 2]].clamp(0, width).unbind(1)
    y1, y2 = boxes[:, [1, 3]].clamp(0, height).unbind(1)
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    kept = ((x2 - x1) * (y2 - y1) >= visible * area) & (x2 - x1 >= LEAST_SIDE)
    kept &= y2 - y1 >= LEAST_SIDE
    return torch.stack([x1, y1, x2, y2], 1)[kept], kept
