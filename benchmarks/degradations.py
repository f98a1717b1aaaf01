"""What takes away from one modality of a real pair: dimmed, blurred, shifted or dropped.

Each maps one image (c, H, W) in [0, 1] to another; boxes stay where they are.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

from ragrad_ext.detection.data.datasets import PairedImages

CHANNELS = {"rgb": slice(0, 3), "ir": slice(3, 4)}


def dimmed(image: Tensor) -> Tensor:
    """A twentieth of the light, in the same 8 bits: at most 13 grey levels are left."""
    return (image * 255 / 20).round() / 255


def blurred(image: Tensor) -> Tensor:
    """By a Gaussian of 4 pixels, far out of focus."""
    return gaussian_blur(image, kernel_size=25, sigma=4.0)


def shifted(image: Tensor) -> Tensor:
    """By a tenth of the width and of the height; what leaves on one side enters on the other."""
    return image.roll((image.shape[1] // 10, image.shape[2] // 10), (1, 2))


def dropped(image: Tensor) -> Tensor:
    """No signal."""
    return torch.zeros_like(image)


KINDS: dict[str, Callable[[Tensor], Tensor]] = {
    f.__name__: f for f in (dimmed, blurred, shifted, dropped)
}


class Degraded(PairedImages):
    """The first ``n`` pairs of ``data``, one modality of each degraded; all intact without one."""

    def __init__(self, data: PairedImages, n: int, kind: str = "", modality: str = "") -> None:
        self.data, self.kind, self.modality = data, kind, modality
        self.classes, self.ids = data.classes, data.ids[:n]
        self.conditions = data.conditions[:n]

    def image(self, index: int) -> Tensor:
        image = self.data.image(index)
        if self.modality:
            part = image[CHANNELS[self.modality]].float() / 255
            image = image.clone()
            image[CHANNELS[self.modality]] = (KINDS[self.kind](part) * 255).round().byte()
        return image

    def truth(self, index: int) -> tuple[object, object, object]:
        return self.data.truth(index)
