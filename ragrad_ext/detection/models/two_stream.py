"""Two backbones, fused by addition, in front of torchvision's detectors."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any

import torchvision
from torch import Tensor, nn
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign

Levels = OrderedDict[str, Tensor]

STRIDES = (8, 16, 32)
# ImageNet's for RGB, as torchvision's detectors use; their average for infrared.
MEAN = (0.485, 0.456, 0.406, 0.449)
STD = (0.229, 0.224, 0.225, 0.226)
# torchvision's default of 0.2 (FCOS) would cut the tail that COCO's AP integrates over.
MIN_SCORE = 0.05
MAX_DETECTIONS = 100  # an image; COCO counts no more


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


class Fuse(nn.Module):
    """Adds two pyramids level by level. A forward hook here sees what the two streams agree on."""

    def forward(self, rgb: Levels, ir: Levels) -> Levels:
        return OrderedDict((name, rgb[name] + ir[name]) for name in rgb)


class TwoStreamBackbone(nn.Module):
    """Two backbones of one kind, `rgb` and `ir`, joined by `fuse` and then `fpn`.

    Maps (B, 4, H, W) to three levels "0", "1", "2" of `out_channels` channels at strides 8, 16
    and 32. The infrared channel is repeated to three, so that the first layers are twins too.
    `make` is called twice and returns a module and the channels of its three levels.
    """

    def __init__(self, make: Callable[[], tuple[nn.Module, list[int]]], out_channels: int) -> None:
        super().__init__()
        self.rgb, channels = make()
        self.ir, _ = make()
        self.fuse = Fuse()
        self.fpn = FeaturePyramidNetwork(channels, out_channels)
        self.out_channels = out_channels

    def forward(self, images: Tensor) -> Levels:
        rgb, ir = images[:, :3], images[:, 3:].expand(-1, 3, -1, -1)
        return self.fpn(self.fuse(self.rgb(rgb), self.ir(ir)))


def _light() -> tuple[nn.Module, list[int]]:
    """Five stages of two 3x3 convolutions, each stage at half the resolution of the one before."""

    def convolve(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
        convolution = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
        return [convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]

    widths = (16, 32, 64, 128, 128)
    stages: OrderedDict[str, nn.Module] = OrderedDict(
        (f"stage{i + 1}", nn.Sequential(*convolve(inputs, width, 2), *convolve(width, width, 1)))
        for i, (inputs, width) in enumerate(zip((3, *widths), widths, strict=False))
    )
    levels = {"stage3": "0", "stage4": "1", "stage5": "2"}
    return IntermediateLayerGetter(nn.Sequential(stages), levels), list(widths[2:])


def _resnet(name: str) -> tuple[nn.Module, list[int]]:
    """torchvision's ResNet from scratch: batch norm learns, nothing is frozen."""
    resnet = torchvision.models.get_model(name, weights=None)
    widest = resnet.fc.in_features
    levels = {"layer2": "0", "layer3": "1", "layer4": "2"}
    return IntermediateLayerGetter(resnet, levels), [widest // 4, widest // 2, widest]


def _fcos(backbone: TwoStreamBackbone, num_labels: int) -> nn.Module:
    """One point per cell; an object belongs to the level by its reach (0-64, 64-128, above).

    The four distances pass a ReLU. torchvision starts them around 0, from where a whole side of
    every box can die for many epochs: they start at one cell instead.
    """
    points = AnchorGenerator(tuple((s,) for s in STRIDES), ((1.0,),) * len(STRIDES))
    model = FCOS(
        backbone,
        num_labels,
        anchor_generator=points,
        score_thresh=MIN_SCORE,
        detections_per_img=MAX_DETECTIONS,
    )
    nn.init.ones_(model.head.regression_head.bbox_reg.bias)
    return model


def _anchors() -> AnchorGenerator:
    """Nine anchors per cell, from 16 to 101 pixels, in thirds of an octave.

    Half the usual size: pairs of 384 x 288 pixels hold persons of 10 x 23 pixels. Of the boxes of
    MSRS, 79 (person) to 92 % (bicycle, car) reach an IoU of 0.5 with one of these anchors, and 44
    to 89 % with the usual ones.
    """
    sizes = tuple(tuple(round(2 * s * 2 ** (k / 3)) for k in range(3)) for s in STRIDES)
    return AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(STRIDES))


def _retinanet(backbone: TwoStreamBackbone, num_labels: int) -> nn.Module:
    """With the head of torchvision's `retinanet_resnet50_fpn_v2`: group norm and GIoU loss.

    The first version's head has no normalisation: trained from scratch, its loss rose for most
    seeds (up to twelvefold in twelve steps), where this one's fell to a quarter.
    """
    anchors = _anchors()
    head = RetinaNetHead(
        backbone.out_channels,
        anchors.num_anchors_per_location()[0],
        num_labels,
        norm_layer=partial(nn.GroupNorm, 32),
    )
    head.regression_head._loss_type = "giou"
    return RetinaNet(
        backbone,
        num_labels,
        anchor_generator=anchors,
        head=head,
        score_thresh=MIN_SCORE,
        detections_per_img=MAX_DETECTIONS,
    )


def _fasterrcnn(backbone: TwoStreamBackbone, num_labels: int) -> nn.Module:
    hidden = 4 * backbone.out_channels  # 1024 at the usual 256 channels, as in torchvision
    pool = MultiScaleRoIAlign(
        ["0", "1", "2"],
        output_size=7,
        sampling_ratio=2,
        canonical_scale=64,  # regions of 64 to 128 pixels are read at stride 16
    )
    return FasterRCNN(
        backbone,
        rpn_anchor_generator=_anchors(),
        box_roi_pool=pool,
        box_head=TwoMLPHead(backbone.out_channels * 7**2, hidden),
        box_predictor=FastRCNNPredictor(hidden, num_labels),
        # Small images hold few objects: torchvision's 512 and 1000 regions an image would cost
        # more than everything before them.
        box_batch_size_per_image=128,
        rpn_post_nms_top_n_test=300,
        box_score_thresh=MIN_SCORE,
        box_detections_per_img=MAX_DETECTIONS,
    )


DETECTORS: dict[str, Callable[[TwoStreamBackbone, int], nn.Module]] = {
    "fcos": _fcos,
    "retinanet": _retinanet,
    "fasterrcnn": _fasterrcnn,
}
# name -> (how one stream is made, channels of the FPN)
BACKBONES: dict[str, tuple[Callable[[], tuple[nn.Module, list[int]]], int]] = {
    "light": (_light, 64),
    "resnet18": (lambda: _resnet("resnet18"), 256),
    "resnet50": (lambda: _resnet("resnet50"), 256),
}


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
