"""Hooks on the graph of one backward, which sum up what a `Hooked` place needs.

A hook belongs to the graph of one forward and is freed with it. It holds what the forward saved for
the backward anyway, and releases that when it has run. L is what is differentiated, a loss scale
included.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .activations import Function, is_homogeneous, output_of
from .graph import Node, saved

Add = Callable[[Tensor], None]
Grads = tuple[Tensor | None, ...]


class LossScale:
    """The factor that a GradScaler puts on the loss, seen when the backward starts."""

    def __init__(self, loss: Tensor) -> None:
        self.value: Tensor | None = None
        loss.grad_fn.register_prehook(self._see)  # type: ignore[union-attr]

    def _see(self, grads: Grads) -> None:
        self.value = grads[0]

    def removed(self, x: Tensor) -> Tensor:
        """``x`` as it would be without the factor."""
        return x if self.value is None else x / self.value


def hook_norm(norm: Node, channels: int, inner: int, add: Add) -> None:
    """Hand E to ``add``, (1, C) float64: what the gradient of the norm's gain would say.

    ``E = -sum x^ dL/dx^`` with x^ the normalised value.

    Args:
        norm: a node that normalises every channel by statistics of its own.
        inner: elements between two channels of one sample.
    """
    held = [(saved(norm, "input"), *_statistics(norm), saved(norm, "weight"))]

    @torch.no_grad()
    def run(grads: Grads) -> None:
        if held and grads[0] is not None:
            x, mean, rstd, weight = held.pop()
            assert x is not None
            x, g = (t.reshape(-1, mean.numel(), inner) for t in (x, grads[0]))
            effect = -rstd * (_dot(x, g).sum(0) - mean * _sum(g).sum(0))
            if weight is not None:
                effect = effect * weight
            add(effect.view(-1, channels).sum(0)[None])  # an InstanceNorm's are images x channels

    norm.register_prehook(run)


def hook_activation(node: Node, channels: int, inner: int, add: Add) -> None:
    """Hand the sums of `AtActivation` to ``add``, (4, C)."""
    held = [(saved(node, "self"), output_of(node))]

    @torch.no_grad()
    def run(inputs: Grads, outputs: Grads) -> None:
        if held and inputs[0] is not None and outputs[0] is not None:
            z, output = held.pop()
            assert output is not None
            flat = (t.reshape(-1, channels, inner) for t in (output(), outputs[0], inputs[0]))
            a, da, dz = flat
            a_da = _dot(a, da)
            # only a homogeneous f does not save z, and then z f'(z) = f(z)
            z_dz = a_da if z is None else _dot(z.reshape(-1, channels, inner), dz)
            add(torch.stack([a_da.sum(0), _sum(da).sum(0), z_dz.sum(0), _sum(dz).sum(0)]))

    node.register_hook(run)


class NextActivation(NamedTuple):
    """The activation right after a norm.

    Attributes:
        node, function: its node and its function.
        shift: the bias of the norm, (C,); None is 0.
    """

    node: Node
    function: Function
    shift: Tensor | None


class MixingHooks:
    """Rows that feed a GroupNorm or LayerNorm: removing one moves every channel of its group.

    They hand E to ``add``, (1, C) float64. The change is computed up to the norm's output, and for
    the row's own channel up to the output of the activation that follows. With c the input of the
    norm less the group's mean, n elements a group, s of them a channel, and r what remains of
    channel i, less that mean too:

        mean' - mean = d = (s r - sum c_i) / n
        1 / rstd'^2 = 1 / rstd^2 + (s r^2 - sum c_i^2) / n - d^2

    Sums over c come from sums over the input itself, so nothing of an activation's size is made
    (except a float32 copy of an input of lower precision).

    Args:
        norm: the norm's node.
        channels, inner: C, and the elements between two channels of one sample.
        bias: what remains of the layer's output without the row, (C,); None is 0.
        activation: what follows the norm, if that is an activation.
    """

    def __init__(
        self,
        norm: Node,
        channels: int,
        inner: int,
        bias: Tensor | None,
        activation: NextActivation | None,
        add: Add,
    ) -> None:
        mean, rstd = _statistics(norm)
        groups = mean.shape[1] if norm.name().startswith("NativeGroupNorm") else 1
        self.mean, self.rstd = mean.reshape(-1, groups, 1), rstd.reshape(-1, groups, 1)
        self.shape = (-1, groups, channels // groups, inner)
        weight, device = saved(norm, "weight"), mean.device
        self.gain = self._per_channel(1.0 if weight is None else weight, device)
        self.bias = self._per_channel(0.0 if bias is None else bias, device)
        self.x = saved(norm, "input")
        self.done = False
        self.add = add
        self.function: Function | None = None
        if activation is not None:
            node, self.function, shift = activation
            self.shift = self._per_channel(0.0 if shift is None else shift, device)
            # of a homogeneous f, a da = z dz: a norm's output by what the norm sums up anyway
            self.output = None if is_homogeneous(node) else output_of(node)
            node.register_prehook(self._at_activation)
        norm.register_prehook(self._at_norm)

    def _per_channel(self, value: Tensor | float, device: torch.device) -> Tensor:
        full = torch.as_tensor(value, device=device).detach().float()
        return full.expand(self.shape[1] * self.shape[2]).view(self.shape[1:3])

    @torch.no_grad()
    def _at_activation(self, grads: Grads) -> None:
        if self.done or grads[0] is None:
            return
        da = grads[0].reshape(self.shape).float()
        self.da = _sum(da)
        self.a_da = None if self.output is None else _dot(self.output().reshape(self.shape), da)
        self.output = None

    @torch.no_grad()
    def _at_norm(self, grads: Grads) -> None:
        if self.done or grads[0] is None:
            return
        assert self.x is not None
        x, g = (t.reshape(self.shape).float() for t in (self.x, grads[0]))
        s, n = x.shape[3], x.shape[2] * x.shape[3]
        sum_x, sum_g = _sum(x), _sum(g)
        sum_c = sum_x - s * self.mean
        sum_cc = _dot(x, x) - self.mean * (2 * sum_x - s * self.mean)
        u, uc = sum_g * self.gain, (_dot(x, g) - self.mean * sum_g) * self.gain
        r = self.bias - self.mean
        d = (s * r - sum_c) / n
        variance = self.rstd**-2 + (s * r**2 - sum_cc) / n - d**2
        # a group of one channel has no spread without it: 0, but for rounding
        rstd = variance.clamp(min=1e-6 * self.rstd**-2).rsqrt()
        others, others_c = (t.sum(2, keepdim=True) - t for t in (u, uc))
        effect = rstd * (others_c - d * others) - self.rstd * others_c
        left, z_dz = rstd * (r - d), self.rstd * uc  # without the shift
        if self.function is None:
            effect += left * u - z_dz
        else:
            a_da = z_dz + self.shift * sum_g if self.a_da is None else self.a_da
            effect += self.function((left * self.gain + self.shift).float()) * self.da - a_da
        self.add(effect.sum(0, dtype=torch.float64).view(1, -1))
        self.done, self.x = True, None


def _statistics(norm: Node) -> tuple[Tensor, Tensor]:
    """Mean and 1 / std that ``norm`` used, float32."""
    mean, rstd = saved(norm, "result1"), saved(norm, "result2")
    assert mean is not None
    assert rstd is not None
    return mean.float(), rstd.float()


def _dot(x: Tensor, y: Tensor) -> Tensor:
    """Sums of products over the last axis, float64; float32 where there is nothing to sum."""
    x, y = x.float(), y.float()
    return (x * y).squeeze(-1) if x.shape[-1] == 1 else torch.linalg.vecdot(x, y).double()


def _sum(x: Tensor) -> Tensor:
    x = x.float()
    return x.squeeze(-1) if x.shape[-1] == 1 else x.sum(-1).double()
