"""A two-stream detector: two backbones, their fusion, and one of torchvision's detectors."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from .backbones import BACKBONES, STRIDES, TwoStreamBackbone
from .detectors import DETECTORS

# ImageNet's for RGB, as torchvision's detectors use; their average for infrared.
MEAN = (0.485, 0.456, 0.406, 0.449)
STD = (0.229, 0.224, 0.225, 0.226)


class PairTransform(GeneralizedRCNNTransform):
    """Normalises the four channels and pads a batch to a multiple of 32 pixels.

    `image_size` is (width, height) in pixels to resize to; None leaves every image as it is.
    Detections come back in the pixels of the image that was given.
    """

    def __init__(self, image_size: tuple[int, int] | None = None) -> None:
        super().__init__(0, 0, list(MEAN), list(STD), max(STRIDES), fixed_size=image_size)

    def normalize(self, image: Tensor) -> Tensor:
        if image.shape[0] != len(MEAN):  # one channel would broadcast to four, silently
            raise ValueError(
                f"an image must have 4 channels (red, green, blue, infrared), got a tensor of "
                f"shape {tuple(image.shape)}; stack the infrared image below the visible one"
            )
        return super().normalize(image)

    def resize(
        self, image: Tensor, target: dict[str, Tensor] | None = None
    ) -> tuple[Tensor, dict[str, Tensor] | None]:
        if self.fixed_size is None:
            return image, target
        return super().resize(image, target)


def _choose(what: str, name: str, choices: dict[str, Any]) -> Any:
    if name not in choices:
        raise ValueError(f"unknown {what} {name!r}; choose one of {', '.join(choices)}")
    return choices[name]


def build(
    detector: str = "fcos",
    backbone: str = "light",
    num_classes: int = 3,
    *,
    image_size: tuple[int, int] | None = None,
) -> nn.Module:
    """A two-stream detector with fresh weights, drawn from torch's current random state.

    `detector` is fcos, retinanet or fasterrcnn; `backbone` light, resnet18 or resnet50. There are
    `num_classes` kinds of object, labelled 1 to `num_classes`: a label is the index of a logit,
    and logit 0 is background (which FCOS and RetinaNet have by convention only: nothing is
    trained to be one). `image_size`: see `PairTransform`.

    In train mode `model(images, targets)` returns a dict of losses; in eval mode `model(images)`
    returns a list of dicts of boxes (n, 4) xyxy pixels, labels (n,) and scores (n,). Images are
    float tensors (4, H, W) in [0, 1]. The twins are `model.backbone.rgb` and `model.backbone.ir`.

    Raises ValueError for an unknown name or `num_classes` below 1.
    """
    assemble = _choose("detector", detector, DETECTORS)
    make, channels = _choose("backbone", backbone, BACKBONES)
    if num_classes < 1:
        raise ValueError(f"num_classes counts the kinds of object, at least 1; got {num_classes}")
    model = assemble(TwoStreamBackbone(make, channels), num_classes + 1)
    model.transform = PairTransform(image_size)
    return model
