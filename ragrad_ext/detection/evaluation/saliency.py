"""Where a detector looks: gradient saliency per modality, LayerCAM on the fused features.

Both explain one number, the evidence S: the sum of the scores of the detections that are at least
`confidence` sure. Given a target, only those count that are right: of the class of an object, and
with an IoU of at least 0.5 with it. Nothing counts: S is 0 and so is every map.
Neither leaves a trace in the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import box_iou

from .evaluate import evaluating

SMOOTH = 7  # pixels: single ones are noise, and strides leave a grid


def gradient_saliency(
    model: nn.Module,
    image: Tensor,
    target: Mapping[str, Any] | None = None,
    *,
    confidence: float = 0.3,
) -> tuple[Tensor, Tensor]:
    """How much each pixel of each modality moves the evidence (Simonyan et al. 2014).

    `image` is (4, H, W). Returns two maps (H, W) in [0, 1], visible and infrared: the largest
    |dS/dx| of the three channels that a stream sees (infrared too: its one value, repeated),
    averaged over 7 x 7 pixels and divided by the maximum of *both* maps, so that they compare.
    """
    seen = _observe(model, image, target, confidence)
    rgb, ir = torch.autograd.grad(seen.evidence, [seen.rgb, seen.ir], materialize_grads=True)
    maps = seen.over_image(torch.cat([rgb, ir]).abs().amax(1, keepdim=True))
    maps = functional.avg_pool2d(maps, SMOOTH, 1, SMOOTH // 2, count_include_pad=False)
    visible, infrared = _scaled(maps[:, 0]).cpu()
    return visible, infrared


def layer_cam(
    model: nn.Module,
    image: Tensor,
    target: Mapping[str, Any] | None = None,
    *,
    confidence: float = 0.3,
) -> Tensor:
    """Which places of the fused features carry the evidence (LayerCAM, Jiang et al. 2021).

    `image` is (4, H, W). A level A (C, h, w) of `model.backbone.fuse` gives
    relu(sum_c relu(dS/dA_c) A_c), which is stretched over the image; the map (H, W), in [0, 1],
    holds the largest level at each pixel. A cell's value is first divided by the cell's area:
    evidence per pixel. (Jiang et al. rescale the levels too. As they are, the few cells of the
    coarsest level would hide the others.)
    """
    seen = _observe(model, image, target, confidence)
    gradients = torch.autograd.grad(seen.evidence, seen.levels, materialize_grads=True)
    maps = []
    for level, gradient in zip(seen.levels, gradients, strict=True):
        cam = (gradient.relu() * level.detach()).sum(1, keepdim=True).relu()
        maps.append(seen.over_image(cam * cam.numel()))
    return _scaled(torch.cat(maps).amax((0, 1))).cpu()


@dataclass(frozen=True)
class _Seen:
    """One image's way through a detector, with the graph to differentiate it by."""

    evidence: Tensor  # S, a scalar
    rgb: Tensor  # what the streams see (1, 3, h, w): normalised, resized, padded
    ir: Tensor
    levels: list[Tensor]  # fused features, (1, C, h / stride, w / stride)
    inner: tuple[int, int]  # the part of (h, w) that is image; the rest is padding
    size: tuple[int, int]  # (H, W) of the image that was given

    def over_image(self, maps: Tensor) -> Tensor:
        """Maps (n, 1, any, any) over what the streams see, resized to the image: (n, 1, H, W)."""
        maps = functional.interpolate(maps, self.rgb.shape[-2:], mode="bilinear")
        maps = maps[..., : self.inner[0], : self.inner[1]]
        return functional.interpolate(maps, self.size, mode="bilinear")


def _observe(
    model: nn.Module, image: Tensor, target: Mapping[str, Any] | None, confidence: float
) -> _Seen:
    device = next(model.parameters()).device
    # Even where every weight is frozen, the pixels give the features a gradient.
    pixels = image.detach().to(device, copy=True).requires_grad_()
    caught: dict[str, tuple[Any, Any]] = {}

    def catch(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            caught[name] = inputs, output

        return model.get_submodule(name).register_forward_hook(hook)

    names = ("transform", "backbone.rgb", "backbone.ir", "backbone.fuse")
    hooks = [catch(name) for name in names]
    try:
        with evaluating(model), torch.enable_grad():
            detections = model([pixels])[0]
    finally:
        for hook in hooks:
            hook.remove()
    (batch, _), levels = caught["transform"][1], caught["backbone.fuse"][1]
    height, width = image.shape[-2:]
    return _Seen(
        evidence=_evidence(detections, target, confidence) + 0 * pixels.sum(),  # even if constant
        rgb=caught["backbone.rgb"][0][0],
        ir=caught["backbone.ir"][0][0],
        levels=list(levels.values()),
        inner=batch.image_sizes[0],
        size=(height, width),
    )


def _evidence(
    found: dict[str, Tensor], target: Mapping[str, Any] | None, confidence: float
) -> Tensor:
    counts = (found["scores"] >= confidence) & (found["labels"] > 0)
    if target is not None:
        boxes, labels = (target[name].to(counts.device) for name in ("boxes", "labels"))
        near = box_iou(found["boxes"].detach(), boxes) >= 0.5
        counts &= (near & (found["labels"][:, None] == labels)).any(1)
    return found["scores"][counts].sum()


def _scaled(maps: Tensor) -> Tensor:
    largest = maps.max()
    return maps / largest if largest > 0 else torch.zeros_like(maps)
