"""Streams of a layer, a norm and an activation whose gates need hooks, and removal by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import FrozenBatchNorm2d

from ragrad_ext import Gate, RaGrad

Part = Callable[[Tensor], Tensor]


def same(x: Tensor) -> Tensor:
    return x


class Stream(nn.Module):
    """A layer, then a norm, then an activation; each may do more than its name says."""

    def __init__(self, layer: nn.Module, norm: Part = same, activation: Part = same) -> None:
        super().__init__()
        self.layer, self.norm, self.activation = layer, norm, activation

    def forward(self, x: Tensor) -> Tensor:
        self.y = self.layer(x)
        self.n = self.norm(self.y)
        self.a = self.activation(self.n)
        return self.a

    def removed(self, i: int, axis: int) -> tuple[Tensor, Tensor]:
        """norm and activation without row i."""
        y = self.y.detach().clone()
        bias = getattr(self.layer, "bias", None)
        y.select(axis, i).fill_(0.0 if bias is None else float(bias[i]))
        n = self.norm(y)
        return n, self.activation(n)


class Frozen(FrozenBatchNorm2d):
    """With statistics that shift some channels up and some down."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.bias.copy_(torch.linspace(-0.5, 0.5, channels))
        self.weight.copy_(torch.linspace(0.5, 1.5, channels))


def frozen_gain(channels: int) -> nn.Module:
    norm = nn.BatchNorm2d(channels)
    nn.init.uniform_(norm.weight, 0.5, 1.5).requires_grad_(False)
    return norm


def evaluated(channels: int) -> nn.Module:
    norm = nn.BatchNorm2d(channels).eval()
    nn.init.uniform_(norm.bias, -0.5, 0.5)
    norm.running_mean.uniform_(-0.3, 0.3)  # type: ignore[union-attr]
    return norm


def trained(norm: nn.Module) -> nn.Module:
    """Gains and biases as after training."""
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    nn.init.uniform_(norm.bias, -0.5, 0.5)
    return norm


def last(norm: nn.Module) -> Part:
    """A norm over the last axis, of images."""
    return lambda x: norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


@dataclass
class Case:
    """A stream, the kind of place where its gate is, and the channel axes of output and weight."""

    make: Callable[[], Stream]
    kind: str
    axis: int = 1
    shape: tuple[int, ...] = (4, 3, 9, 9)
    weight_axis: int = field(default=0)


def conv(**more: bool | int) -> nn.Module:
    return nn.Conv2d(3, 8, 3, **more)  # type: ignore[arg-type]


def loud(layer: nn.Module) -> nn.Module:
    """With outputs so large that a norm's eps does not count."""
    nn.init.normal_(layer.weight, std=1e4)
    return layer


def far(layer: nn.Module) -> nn.Module:
    """With outputs whose mean is ten times their spread."""
    nn.init.constant_(layer.bias, 5.0)
    return layer


CASES = {
    "GroupNorm, ReLU": Case(lambda: Stream(conv(), trained(nn.GroupNorm(2, 8)), F.relu), "mixing"),
    "GroupNorm, SiLU in place": Case(
        lambda: Stream(conv(), trained(nn.GroupNorm(2, 8)), nn.SiLU(inplace=True)), "mixing"
    ),
    "GroupNorm alone": Case(lambda: Stream(conv(bias=False), nn.GroupNorm(4, 8)), "mixing"),
    "GroupNorm without gain": Case(
        lambda: Stream(conv(), nn.GroupNorm(2, 8, affine=False), F.relu), "mixing"
    ),
    "GroupNorm of single channels": Case(
        lambda: Stream(conv(), trained(nn.GroupNorm(8, 8)), F.relu), "mixing"
    ),
    "GroupNorm of single loud channels": Case(
        lambda: Stream(loud(conv()), trained(nn.GroupNorm(8, 8)), F.relu), "mixing"
    ),
    "GroupNorm far from zero": Case(
        lambda: Stream(far(conv()), trained(nn.GroupNorm(2, 8)), F.relu), "mixing"
    ),
    "LayerNorm, GELU": Case(
        lambda: Stream(nn.Linear(3, 8), trained(nn.LayerNorm(8)), F.gelu), "mixing", 2, (4, 7, 3)
    ),
    "LayerNorm over channels": Case(
        lambda: Stream(conv(), last(trained(nn.LayerNorm(8)))), "mixing"
    ),
    "BatchNorm, frozen gain": Case(lambda: Stream(conv(), frozen_gain(8)), "norm"),
    "BatchNorm, no gain": Case(lambda: Stream(conv(), nn.BatchNorm2d(8, affine=False)), "norm"),
    "BatchNorm of features": Case(
        lambda: Stream(nn.Linear(3, 8), nn.BatchNorm1d(8, affine=False)), "norm", 1, (9, 3)
    ),
    "InstanceNorm, no gain": Case(lambda: Stream(conv(), nn.InstanceNorm2d(8)), "norm"),
    "activation, BatchNorm": Case(
        lambda: Stream(conv(), lambda y: nn.BatchNorm2d(8, affine=False)(F.silu(y))), "norm"
    ),
    "FrozenBatchNorm, ReLU": Case(
        lambda: Stream(conv(bias=False), Frozen(8), F.relu), "activation"
    ),
    "FrozenBatchNorm, SiLU": Case(
        lambda: Stream(conv(bias=False), Frozen(8), F.silu), "activation"
    ),
    "BatchNorm in evaluation": Case(lambda: Stream(conv(), evaluated(8), F.relu), "activation"),
    "bias, ReLU in place": Case(
        lambda: Stream(conv(), same, nn.ReLU(inplace=True)), "activation"
    ),
    "bias, leaky ReLU in place": Case(
        lambda: Stream(conv(), same, nn.LeakyReLU(0.2, inplace=True)), "activation"
    ),
    "bias, ReLU6": Case(lambda: Stream(conv(), same, F.relu6), "activation"),
    "bias, Mish": Case(lambda: Stream(conv(), same, F.mish), "activation"),
    "bias, Hardswish": Case(lambda: Stream(conv(), same, F.hardswish), "activation"),
    "bias, ELU": Case(lambda: Stream(conv(), same, F.elu), "activation"),
    "bias, SELU": Case(lambda: Stream(conv(), same, F.selu), "activation"),
    "linear, GELU": Case(
        lambda: Stream(nn.Linear(3, 8), same, lambda x: F.gelu(x, approximate="tanh")),
        "activation", 2, (4, 7, 3),
    ),
    "linear, transposed, GELU": Case(
        lambda: Stream(nn.Linear(3, 8), lambda y: y.transpose(-2, -1), F.gelu),
        "activation", 2, (4, 7, 3),
    ),
    "linear on channels last, GELU": Case(
        lambda: Stream(nn.Linear(3, 8), lambda y: y.permute(0, 3, 1, 2), F.gelu),
        "activation", 3, (2, 5, 5, 3),
    ),
    "transposed, bias, ReLU": Case(
        lambda: Stream(nn.ConvTranspose2d(3, 8, 3), same, F.relu), "activation", weight_axis=1
    ),
    "depthwise, GroupNorm": Case(
        lambda: Stream(nn.Conv2d(4, 8, 3, groups=4), nn.GroupNorm(2, 8)), "mixing", 1, (4, 4, 9, 9)
    ),
}  # fmt: skip


def pair(case: Case) -> tuple[RaGrad, Gate, Stream, Stream]:
    """Two streams of a case, and RaGrad on them."""
    torch.manual_seed(0)
    a, b = case.make(), case.make()
    gate = Gate()
    return RaGrad(a, b, effectiveness=gate), gate, a, b


def loss_of_sum(streams: tuple[Stream, ...], x: Tensor) -> Tensor:
    """A loss of their sum with another weight for every element, and curvature."""
    out = sum(stream(x) for stream in streams)
    assert isinstance(out, Tensor)
    g = torch.Generator().manual_seed(3)
    return (out * torch.randn(out.shape, generator=g)).mean().add(0.1).square().mul(10) + (
        out.square().mean()
    )


def reference(case: Case, loss: Tensor, stream: Stream) -> Tensor:
    """``sum (t' - t) dL/dt``, every row really removed from the output of the layer."""
    dn, da = torch.autograd.grad(loss, [stream.n, stream.a], retain_graph=True)
    rows = []
    for i in range(8):
        with torch.no_grad():
            n, a = stream.removed(i, case.axis)
            through_norm, through_activation = (n - stream.n) * dn, (a - stream.a) * da
            if case.kind == "activation":
                rows.append(through_activation.sum())
            else:  # the row's own channel up to the activation, the others up to the norm
                own = through_norm.select(1 if n.dim() > 3 else case.axis, i)
                own_a = through_activation.select(1 if n.dim() > 3 else case.axis, i)
                rows.append(through_norm.sum() - own.sum() + own_a.sum())
    return torch.stack(rows).double()


GROUP, FROZEN, NO_GAIN = (
    CASES[k] for k in ("GroupNorm, ReLU", "FrozenBatchNorm, SiLU", "BatchNorm, no gain")
)
KINDS = pytest.mark.parametrize("case", [GROUP, FROZEN, NO_GAIN], ids=lambda case: case.kind)


def effect(ragrad: RaGrad) -> Tensor:
    """E of the step that ends here, (2, rows)."""
    ragrad.correct_()
    assert ragrad.repa.effect is not None
    return ragrad.repa.effect


def clear(*streams: Stream) -> None:
    for stream in streams:
        stream.zero_grad()
