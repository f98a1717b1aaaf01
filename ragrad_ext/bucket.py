"""Paired gradients as one list of rows (l, i): layer by layer, one row per output channel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Layout:
    """How the rows of L layers lie behind one another.

    Attributes:
        channels: C_l, the output channels of layer l.
        offsets: (L + 1,) bounds; layer l owns the flat rows ``offsets[l]:offsets[l + 1]``.
    """

    channels: tuple[int, ...]
    offsets: tuple[int, ...]

    @classmethod
    def of(cls, channels: Sequence[int]) -> Layout:
        return cls(tuple(channels), (0, *accumulate(channels)))

    @property
    def rows(self) -> int:
        return self.offsets[-1]

    def slices(self) -> list[slice]:
        """The flat rows of every layer."""
        return [slice(a, b) for a, b in pairwise(self.offsets)]


@dataclass(frozen=True)
class Bucket:
    """Checked twins of one step, channel axis first; None marks a pair that is skipped.

    Attributes:
        layout: the rows of every pair, skipped ones included, so that rows keep their
            place from step to step.
        rgb, ir: (C_l, ...) gradients, views of the caller's memory.
        device: where all of them lie.
    """

    layout: Layout
    rgb: tuple[Tensor | None, ...]
    ir: tuple[Tensor | None, ...]
    device: torch.device

    @classmethod
    def of(
        cls,
        grads_rgb: Sequence[Tensor | None],
        grads_ir: Sequence[Tensor | None],
        layout: Layout,
        channel_axes: Sequence[int],
        device: torch.device,
    ) -> Bucket:
        """Check every pair, then view it with its channel axis first. Nothing is written.

        Raises:
            ValueError, TypeError: naming the pair, what was found and the cure.
        """
        check_lengths(len(grads_rgb), len(grads_ir), len(layout.channels))
        pairs: list[tuple[Tensor, Tensor] | tuple[None, None]] = []
        for l, (g_rgb, g_ir) in enumerate(zip(grads_rgb, grads_ir, strict=True)):
            if g_rgb is None or g_ir is None:
                pairs.append((None, None))
                continue
            check_gradient(g_rgb, f"grads_rgb[{l}]")
            check_gradient(g_ir, f"grads_ir[{l}]")
            _check_twins(g_rgb, g_ir, l)
            g_rgb, g_ir = (g.movedim(channel_axes[l], 0) for g in (g_rgb, g_ir))
            if g_rgb.shape[0] != layout.channels[l]:
                raise ValueError(
                    f"stats describe {layout.channels[l]} channels for pair {l}, but its gradients "
                    f"have {g_rgb.shape[0]}; pass the gradients in the order the stats were made in"
                )
            pairs.append((g_rgb, g_ir) if g_rgb.numel() else (None, None))
        _check_devices(pairs, device)
        return cls(layout, tuple(p[0] for p in pairs), tuple(p[1] for p in pairs), device)


def check_lengths(n_rgb: int, n_ir: int, n_stats: int) -> None:
    if n_rgb != n_ir:
        raise ValueError(
            f"grads_rgb has {n_rgb} entries, grads_ir has {n_ir}; pass one twin for each "
            "(None on either side skips a pair)"
        )
    if n_rgb != n_stats:
        raise ValueError(
            f"stats describe {n_stats} pairs, but {n_rgb} pairs of gradients were passed; "
            "pass one entry per pair (None for a gradient that is absent)"
        )


def check_gradient(g: Tensor, name: str) -> None:
    """One gradient: a dense, strided, floating point tensor with a channel axis."""
    if not isinstance(g, Tensor):
        raise TypeError(f"{name} is {type(g).__name__}; pass a torch.Tensor or None")
    if g.layout != torch.strided:
        raise TypeError(
            f"{name} is sparse ({g.layout}); pass a dense gradient "
            "(for an embedding: sparse=False), or leave the pair out"
        )
    if g.dtype not in DTYPES:
        raise TypeError(
            f"{name} has dtype {g.dtype}; gradients are corrected in float32, bfloat16 or float16"
        )
    if g.dim() == 0:
        raise ValueError(f"{name} is a single number; a gradient needs an output channel axis")
    if any(s == 0 and n > 1 for s, n in zip(g.stride(), g.shape, strict=True)):
        raise ValueError(
            f"{name} is an expanded tensor (strides {g.stride()}): several of its elements share "
            "memory and cannot be corrected in place; pass g.contiguous()"
        )


def _check_twins(g_rgb: Tensor, g_ir: Tensor, l: int) -> None:
    if g_rgb.shape != g_ir.shape:
        raise ValueError(
            f"grads_rgb[{l}] has shape {tuple(g_rgb.shape)}, grads_ir[{l}] has "
            f"{tuple(g_ir.shape)}; pass paired layers of one shape only"
        )
    if g_rgb.dtype != g_ir.dtype:
        raise TypeError(
            f"grads_rgb[{l}] is {g_rgb.dtype}, grads_ir[{l}] is {g_ir.dtype}; "
            "twins must share a dtype"
        )
    if g_rgb.device == g_ir.device and g_rgb.numel() and g_rgb.data_ptr() == g_ir.data_ptr():
        raise ValueError(
            f"grads_rgb[{l}] and grads_ir[{l}] are the same memory; a weight that both streams "
            "share has no twin: leave it out"
        )


def _check_devices(
    pairs: Sequence[tuple[Tensor, Tensor] | tuple[None, None]], device: torch.device
) -> None:
    for l, pair in enumerate(pairs):
        for name, g in zip(("grads_rgb", "grads_ir"), pair, strict=True):
            if g is not None and g.device != device:
                raise ValueError(
                    f"{name}[{l}] lies on {g.device}, expected {device} like the rest of this "
                    "call; all gradients and the stats must share one device"
                )
