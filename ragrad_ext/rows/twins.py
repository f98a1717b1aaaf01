"""The paired weights, checked once and seen row by row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .bucket import refuse_sharded
from .layout import Layout


@dataclass(frozen=True)
class Twins:
    """L paired weights; modality first: index 0 is rgb, 1 is ir.

    Attributes:
        weights: the tensors themselves (Parameters stay Parameters), as the model holds them.
        channel_axes: the output channel axis of each pair.
        layout: C_l and the bounds of every layer.
    """

    weights: tuple[tuple[Tensor, ...], tuple[Tensor, ...]]
    channel_axes: tuple[int, ...]
    layout: Layout

    @classmethod
    def of(
        cls, rgb: Sequence[Tensor], ir: Sequence[Tensor], channel_axes: Sequence[int] | None
    ) -> Twins:
        """Check and bind; no tensor is copied.

        Raises:
            ValueError: lengths, shapes or axes that do not fit together.
            TypeError: sharded weights.
        """
        axes = [0] * len(rgb) if channel_axes is None else list(channel_axes)
        if len(rgb) != len(ir) or len(axes) != len(rgb):
            raise ValueError(
                f"found {len(rgb)} rgb weights, {len(ir)} ir weights and {len(axes)} channel axes; "
                "pass one of each per pair"
            )
        for l, (a, b, axis) in enumerate(zip(rgb, ir, axes, strict=True)):
            refuse_sharded(a, f"weights_rgb[{l}]")
            refuse_sharded(b, f"weights_ir[{l}]")
            if a is b:
                raise ValueError(
                    f"pair {l} is one tensor on both sides; a shared weight has no twin"
                )
            if a.shape != b.shape:
                raise ValueError(
                    f"weights_rgb[{l}] has shape {tuple(a.shape)}, weights_ir[{l}] has "
                    f"{tuple(b.shape)}; pass paired layers of one shape only"
                )
            if not 0 <= axis < a.dim():
                raise ValueError(
                    f"channel axis {axis} of pair {l} does not exist in shape {tuple(a.shape)}"
                )
        layout = Layout.of([w.shape[axis] for w, axis in zip(rgb, axes, strict=True)])
        return cls((tuple(rgb), tuple(ir)), tuple(axes), layout)

    @property
    def device(self) -> torch.device:
        """Where the first weight is now; a model may move after it was paired."""
        return self.weights[0][0].device if self.weights[0] else torch.device("cpu")

    def first(self, m: int, l: int) -> Tensor:
        """Weight l of modality m with its channel axis first, detached: (C_l, ...)."""
        return self.weights[m][l].detach().movedim(self.channel_axes[l], 0)
