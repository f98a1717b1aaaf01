"""torchvision's detectors on top of a backbone of three levels.

Each function takes a backbone (its levels "0", "1", "2" at `STRIDES`, all of `out_channels`
channels) and the number of logits, background among them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn
from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops import MultiScaleRoIAlign

from .backbones import STRIDES, TwoStreamBackbone

# torchvision's default of 0.2 (FCOS) would cut the tail that COCO's AP integrates over.
MIN_SCORE = 0.05
MAX_DETECTIONS = 100  # an image; COCO counts no more


def fcos(backbone: TwoStreamBackbone, num_labels: int) -> nn.Module:
    """torchvision's FCOS with one point per cell.

    An object's level follows from the longest distance of a point to a side of its box: up to 64
    pixels, up to 128, or more.

    The four distances pass a ReLU. torchvision starts them around 0, where one side of every box
    may get no gradient for many epochs. Here they start at one cell.
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


def retinanet(backbone: TwoStreamBackbone, num_labels: int) -> nn.Module:
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


def fasterrcnn(backbone: TwoStreamBackbone, num_labels: int) -> nn.Module:
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
    "fcos": fcos,
    "retinanet": retinanet,
    "fasterrcnn": fasterrcnn,
}
