"""The places where the gate of a row can be. `find_places` finds them (search.py)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .activations import Function


class Place:
    """Where the gate of all rows of one weight is.

    Attributes:
        kind: its name in result files.
        summary, title: its text in `Gate.summary` and in `Gate.report`.
        why: why it is not further from the row, where there is something to say.
        reads_dot: whether E is made from ``g.theta``.
    """

    kind: ClassVar[str]
    summary: ClassVar[str]
    title: ClassVar[str]
    why: str = ""
    reads_dot: ClassVar[bool] = False


@dataclass(frozen=True)
class AtRow(Place):
    """The row's own output: ``E = -g.theta``."""

    why: str

    kind = "row"
    summary = "at their own output"
    title = "at their own output, -g.theta"
    reads_dot = True


@dataclass(frozen=True, eq=False)
class AtGain(Place):
    """After a norm with statistics of the channel: ``E = -gain dL/dgain``, read off ``gain.grad``.

    Attributes:
        gain: (C,), a parameter.
    """

    gain: Tensor

    kind = "gain"
    summary = "read off the gain of a norm"
    title = "after a norm with statistics of the channel, -gain dL/dgain"


class Hooked(Place):
    """A place that no gradient of the step tells about. Hooks on the graph sum up what it needs."""

    def effect(self, sums: Tensor, dot: Tensor) -> Tensor:
        """E of the rows, (C,) float64.

        Args:
            sums: what the hooks summed in this step; (1, C), E itself, unless the subclass says
                otherwise.
            dot: (C,) float64, g.theta.
        """
        return sums[0]


class AtNorm(Hooked):
    """As `AtGain`, but the gain is frozen, absent or shared."""

    kind = "norm"
    summary = "by a hook on a norm"
    title = "after such a norm whose gain is frozen, absent or shared, by a hook"


class AtMixingNorm(Hooked):
    """After a GroupNorm or LayerNorm, and after the activation that follows, if there is one."""

    kind = "mixing"
    summary = "by hooks around a GroupNorm or LayerNorm"
    title = "after a GroupNorm or LayerNorm, by hooks"


@dataclass(frozen=True, eq=False)
class AtActivation(Hooked):
    """After the first activation f.

    With ``z = s w.x + t`` and ``a = f(z)``: ``E = sum (f(t) - a) dL/da``. t is what remains of z
    without the row. The graph does not show it (a frozen BatchNorm keeps it in buffers), but
    ``g.theta = sum (z - t) dL/dz`` gives it. The sums are (4, C): ``a dL/da``, ``dL/da``,
    ``z dL/dz`` and ``dL/dz``.
    """

    function: Function

    kind = "activation"
    summary = "by a hook on an activation"
    title = "after the first activation, by a hook"
    reads_dot = True

    def effect(self, sums: Tensor, dot: Tensor) -> Tensor:
        a_da, da, z_dz, dz = sums
        e = self.function((z_dz - dot) / dz) * da - a_da
        return torch.where(e.isfinite(), e, -dot)  # dz = 0: a dead channel
