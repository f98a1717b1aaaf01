"""One stream: three levels "0", "1", "2" at strides 8, 16 and 32. And two of them, joined."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import torchvision
from torch import Tensor, nn
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.ops import FeaturePyramidNetwork

from .fusion import Fuse, Levels

STRIDES = (8, 16, 32)
Make = Callable[[], tuple[nn.Module, list[int]]]  # a stream, and the channels of its levels


class TwoStreamBackbone(nn.Module):
    """Two backbones of one kind, `rgb` and `ir`, joined by `fuse` and then `fpn`.

    Maps (B, 4, H, W) to three levels "0", "1", "2" of `out_channels` channels at strides 8, 16
    and 32. The infrared channel is repeated to three, so that the first layers are twins too.
    `make` is called twice and returns a module and the channels of its three levels.
    """

    def __init__(self, make: Make, out_channels: int) -> None:
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
    """Five stages of two 3x3 convolutions, each at half the resolution of the previous one."""

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


# name -> (how one stream is made, channels of the FPN)
BACKBONES: dict[str, tuple[Make, int]] = {
    "light": (_light, 64),
    "resnet18": (lambda: _resnet("resnet18"), 256),
    "resnet50": (lambda: _resnet("resnet50"), 256),
}
