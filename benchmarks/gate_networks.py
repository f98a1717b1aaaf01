"""Small two-stream networks, one for each kind of layer that may follow a row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import FrozenBatchNorm2d

Points = dict[str, Tensor]


class Stage(nn.Module):
    """One layer whose rows are judged, and what follows it, point by point.

    ``points`` holds, after a forward, the tensors at which a gate may sit, in order: ``row``, the
    layer's own output; ``norm``; ``activation``. The channel of a row has the index of the row in
    each of them. ``after(row, x)`` computes them from another output of the layer.
    """

    def __init__(
        self,
        layer: nn.Module,
        norm: nn.Module | None = None,
        activation: Callable[[Tensor], Tensor] | None = F.relu,
        *,
        residual: bool = False,
        activation_first: bool = False,
        axis: int = 1,
    ) -> None:
        super().__init__()
        self.layer, self.norm, self.residual = layer, norm, residual
        self.activation, self.activation_first, self.axis = activation, activation_first, axis
        self.points: Points = {}
        self.x = torch.empty(0)

    def forward(self, x: Tensor) -> Tensor:
        self.x = x
        self.points = self.after(self.layer(x), x)
        return list(self.points.values())[-1]

    def after(self, row: Tensor, x: Tensor) -> Points:
        points = {"row": row}
        if self.activation_first and self.activation is not None:
            points["activation"] = row = self.activation(row)
        if self.norm is not None:
            points["norm"] = row = self.norm(row)
        if self.residual:
            row = row + x
            points["sum"] = row
        if self.activation is not None and not self.activation_first:
            points["activation"] = self.activation(row)
        return points

    @property
    def weight(self) -> nn.Parameter:
        weight = self.layer.weight
        assert isinstance(weight, nn.Parameter)
        return weight


class Attention(Stage):
    """Multi-head attention with a packed in_proj, as points: q, k, v rows and what they mix to."""

    heads = 2

    def __init__(self, width: int) -> None:
        super().__init__(nn.Linear(width, 3 * width), axis=2)

    def after(self, row: Tensor, x: Tensor) -> Points:
        b, t, _ = row.shape
        q, k, v = row.view(b, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        scores = (q @ k.mT) * q.shape[-1] ** -0.5
        return {"row": row, "attention": (scores.softmax(-1) @ v).transpose(1, 2).reshape(b, t, -1)}


class ChannelLayerNorm(nn.LayerNorm):
    """LayerNorm over the channels of an image."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class Scale(nn.Module):
    """ConvNeXt's layer scale, on the last axis."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class ConvNeXtBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        depthwise = nn.Conv2d(width, width, 5, padding=2, groups=width)
        self.depthwise = Stage(depthwise, ChannelLayerNorm(width), None)
        self.wide = Stage(nn.Linear(width, 2 * width), None, F.gelu, axis=3)
        self.narrow = Stage(nn.Linear(2 * width, width), Scale(width), None, axis=3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.depthwise(x).movedim(1, -1)
        return x + self.narrow(self.wide(y)).movedim(-1, 1)


class TransformerBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.mix = Attention(width)
        self.out = Stage(nn.Linear(width, width), None, None, axis=2)
        self.wide = Stage(nn.Linear(width, 2 * width), None, F.gelu, axis=2)
        self.narrow = Stage(nn.Linear(2 * width, width), None, None, axis=2)

    def forward(self, x: Tensor) -> Tensor:
        t = x.flatten(2).mT
        t = t + self.out(self.mix(self.norms[0](t)))
        t = t + self.narrow(self.wide(self.norms[1](t)))
        return t.mT.reshape(x.shape)


def conv(inputs: int, outputs: int, bias: bool = False, **more: Any) -> nn.Module:
    return nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=bias, **more)


def plain(**how: Any) -> Callable[[], list[nn.Module]]:
    """Three stages: the same norm, layer and activation in each."""
    bias = how.pop("bias", False)
    norm = how.pop("norm", None)
    layer = how.pop("layer", conv)

    def make() -> list[nn.Module]:
        sizes = ((3, 12), (12, 16), (16, 24))
        return [
            Stage(layer(i, o, bias), None if norm is None else norm(o), **how) for i, o in sizes
        ]

    return make


def residual(norm: Callable[[int], nn.Module]) -> list[nn.Module]:
    def same() -> nn.Module:
        return nn.Conv2d(16, 16, 3, padding=1, bias=False)

    return [
        Stage(conv(3, 16), norm(16)),
        Stage(same(), norm(16)),
        Stage(same(), norm(16), residual=True),
        Stage(conv(16, 24), norm(24)),
    ]


def grouped(inputs: int, outputs: int, bias: bool) -> nn.Module:
    return conv(inputs, outputs, bias, groups=1 if inputs == 3 else 4)


def depthwise() -> list[nn.Module]:
    def pair(i: int, o: int) -> list[nn.Module]:
        return [
            Stage(conv(i, i, groups=i), nn.BatchNorm2d(i)),
            Stage(nn.Conv2d(i, o, 1, bias=False), nn.BatchNorm2d(o)),
        ]

    return [Stage(conv(3, 12), nn.BatchNorm2d(12)), *pair(12, 16), *pair(16, 24)]


def transposed() -> list[nn.Module]:
    up = nn.ConvTranspose2d(16, 16, 2, stride=2, bias=False)
    return [
        Stage(conv(3, 12), nn.BatchNorm2d(12)),
        Stage(conv(12, 16), nn.BatchNorm2d(16)),
        Stage(up, nn.BatchNorm2d(16)),
    ]


def frozen_gain(channels: int) -> nn.Module:
    """A BatchNorm whose gains are frozen at values of their own."""
    norm = nn.BatchNorm2d(channels)
    with torch.no_grad():
        norm.weight.uniform_(0.5, 1.5)
        norm.bias.uniform_(-0.3, 0.3)
    norm.weight.requires_grad_(False)
    return norm


FROZEN = "frozen BatchNorm"

KINDS: dict[str, Callable[[], list[nn.Module]]] = {
    "BatchNorm": plain(norm=nn.BatchNorm2d),
    "BatchNorm, SiLU": plain(norm=nn.BatchNorm2d, activation=F.silu),
    "BatchNorm, bias in the layer": plain(norm=nn.BatchNorm2d, bias=True),
    "BatchNorm, gain frozen": plain(norm=frozen_gain),
    "BatchNorm, no gain": plain(norm=lambda c: nn.BatchNorm2d(c, affine=False)),
    "BatchNorm, no activation": plain(norm=nn.BatchNorm2d, activation=None),
    "BatchNorm, residual": lambda: residual(nn.BatchNorm2d),
    "BatchNorm, shared by the streams": plain(norm=nn.BatchNorm2d),
    FROZEN: plain(norm=nn.BatchNorm2d),
    f"{FROZEN}, SiLU": plain(norm=nn.BatchNorm2d, activation=F.silu),
    f"{FROZEN}, residual": lambda: residual(nn.BatchNorm2d),
    "activation, BatchNorm": plain(norm=nn.BatchNorm2d, activation_first=True, bias=True),
    "BatchNorm, grouped": plain(norm=nn.BatchNorm2d, layer=grouped),
    "BatchNorm, depthwise": depthwise,
    "BatchNorm, transposed": transposed,
    "InstanceNorm": plain(norm=lambda c: nn.InstanceNorm2d(c, affine=True)),
    "GroupNorm": plain(norm=lambda c: nn.GroupNorm(4, c)),
    "LayerNorm": plain(norm=ChannelLayerNorm),
    "no norm": plain(bias=True),
    "no norm, no bias": plain(),
    "no norm, SiLU": plain(bias=True, activation=F.silu),
    "ConvNeXt": lambda: [Stage(conv(3, 16, True), ChannelLayerNorm(16), None), ConvNeXtBlock(16)],
    "transformer": lambda: [
        Stage(conv(3, 16, True), None, None),
        nn.AvgPool2d(2),
        TransformerBlock(16),
    ],
}


def stages(stream: nn.Module) -> list[Stage]:
    return [m for m in stream.modules() if isinstance(m, Stage)]


class Network(nn.Module):
    """Two such streams, added, pooled, and a linear layer."""

    def __init__(self, kind: str, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.rgb, self.ir = (nn.Sequential(*KINDS[kind]()) for _ in range(2))
            if "shared" in kind:
                for mine, theirs in zip(stages(self.ir), stages(self.rgb), strict=True):
                    mine.norm = theirs.norm
            self.head = nn.LazyLinear(3)
            self(torch.zeros(2, 4, 32, 32))

    def forward(self, image: Tensor) -> Tensor:
        image = (image - 0.5) * 4
        fused = self.rgb(image[:, :3]) + self.ir(image[:, 3:].expand(-1, 3, -1, -1))
        return self.head(fused.mean((2, 3)))

    def freeze(self) -> None:
        """Put torchvision's FrozenBatchNorm2d in place of every BatchNorm, as detectors do."""
        for stage in [*stages(self.rgb), *stages(self.ir)]:
            assert isinstance(stage.norm, nn.BatchNorm2d)
            frozen = FrozenBatchNorm2d(stage.norm.num_features)
            frozen.load_state_dict(stage.norm.state_dict())
            stage.norm = frozen
