"""The sums behind a gate that no gradient of the step holds: hooks on nodes of its graph.

A hook belongs to the graph of one forward and goes with it. It holds what the forward saved for
the backward anyway, and lets go of it when it has run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .activations import is_homogeneous, output_of
from .graph import Node, saved
from .search import Place

Add = Callable[[Tensor], None]
Grads = tuple[Tensor | None, ...]


def hook(place: Place, channels: int, add: Add) -> None:
    """Hand to ``add`` what ``place`` needs, while its graph is differentiated.

    At a norm that is E itself, (1, C) float64; at an activation (4, C), the sums of ``a dL/da``,
    ``dL/da``, ``z dL/dz`` and ``dL/dz``. L is what is differentiated, a loss scale included.
    """
    if place.kind == "norm":
        _hook_norm(place.norm, channels, place.inner, add)
    elif place.kind == "mixing":
        _Mixing(place, channels, add)
    elif place.kind == "activation":
        _hook_activation(place.activation, channels, place.inner, add)


def effect(place: Place, sums: Tensor, dot: Tensor) -> Tensor:
    """E of the rows of ``place``, (C,), from what `hook` summed and ``dot``, their (C,) g.theta.

    Behind an activation, ``z = s w.x + t`` and ``a = f(z)``: ``E = sum (f(t) - a) dL/da``. The
    graph does not show t, which is left of z without the row (a frozen BatchNorm keeps it in
    buffers), but ``g.theta = sum (z - t) dL/dz`` does.
    """
    if place.kind != "activation":
        return sums[0]
    a_da, da, z_dz, dz = sums
    assert place.function is not None
    e = place.function((z_dz - dot) / dz) * da - a_da
    return torch.where(e.isfinite(), e, -dot)  # dz = 0: a dead channel


def _hook_norm(norm: Node, channels: int, inner: int, add: Add) -> None:
    """``E = -sum x^ dL/dx^`` with x^ the normalised value: what the gain's gradient would say."""
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


def _hook_activation(node: Node, channels: int, inner: int, add: Add) -> None:
    held = [(saved(node, "self"), output_of(node))]

    @torch.no_grad()
    def run(inputs: Grads, outputs: Grads) -> None:
        if held and inputs[0] is not None and outputs[0] is not None:
            z, output = held.pop()
            assert output is not None
            flat = (t.reshape(-1, channels, inner) for t in (output(), outputs[0], inputs[0]))
            a, da, dz = flat
            a_da = _dot(a, da)
            # only a homogeneous f goes without z, and then z f'(z) = f(z)
            z_dz = a_da if z is None else _dot(z.reshape(-1, channels, inner), dz)
            add(torch.stack([a_da.sum(0), _sum(da).sum(0), z_dz.sum(0), _sum(dz).sum(0)]))

    node.register_hook(run)


class _Mixing:
    """Rows in front of a GroupNorm or LayerNorm: removing one moves every channel of its group.

    What that does is computed up to the norm's output, and for the row's own channel up to the
    output of the activation that follows. With c the input of the norm less the group's mean, n
    elements a group, s of them a channel, and r what remains of channel i, less that mean too:

        mean' - mean = d = (s r - sum c_i) / n
        1 / rstd'^2 = 1 / rstd^2 + (s r^2 - sum c_i^2) / n - d^2

    Sums over c come from sums over the input itself, so that nothing of an activation's size is
    made (but a float32 copy of one of lower precision).
    """

    def __init__(self, place: Place, channels: int, add: Add) -> None:
        norm, activation = place.norm, place.activation
        mean, rstd = _statistics(norm)
        groups = mean.shape[1] if norm.name().startswith("NativeGroupNorm") else 1
        self.mean, self.rstd = mean.reshape(-1, groups, 1), rstd.reshape(-1, groups, 1)
        self.shape = (-1, groups, channels // groups, place.inner)
        weight, device = saved(norm, "weight"), mean.device
        self.gain = self._per_channel(1.0 if weight is None else weight, device)
        self.shift = self._per_channel(0.0 if place.shift is None else place.shift, device)
        self.bias = self._per_channel(0.0 if place.bias is None else place.bias, device)
        self.x = saved(norm, "input")
        self.done = False
        self.add = add
        self.function: Any = None
        if activation is not None:
            self.function = place.function
            # of a homogeneous f, a da = z dz: a norm's output by what the norm sums up anyway
            self.output = None if is_homogeneous(activation) else output_of(activation)
            activation.register_prehook(self._at_activation)
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
