"""Paired gradients as one list of rows (l, i): layer by layer, one row per output channel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .. import compiled
from .layout import Layout

Grads = Sequence[Tensor | None]
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Bucket:
    """Checked twins of one step; None on either side marks a pair that is skipped.

    Attributes:
        layout: the rows of every pair, skipped ones included, so that rows keep their
            place from step to step.
        channel_axes: the output channel axis of each pair.
        grads: modality first, the caller's own tensors.
        device: where all of them are.
        table: the compiled row table over these gradients; None where there is none.
        geometry: a number that changes with anything but the addresses of the gradients; None
            where that is not known.
        memory: what backends keep from step to step; no gradients.
    """

    layout: Layout
    channel_axes: Sequence[int]
    grads: tuple[Grads, Grads]
    device: torch.device
    table: Any = None
    geometry: int | None = None
    memory: dict[str, Any] = field(default_factory=dict)

    @property
    def nothing(self) -> tuple[list[None], list[None]]:
        """In place of weights or a history that are not read."""
        none = [None] * len(self.layout.channels)
        return none, none

    def absent(self) -> list[slice]:
        """The flat rows of every pair that is skipped."""
        pairs = zip(self.layout.slices(), *self.grads, strict=True)
        return [rows for rows, a, b in pairs if a is None or b is None or a.numel() == 0]

    def note_changes(self) -> None:
        """Tell autograd that gradients were written in place, as PyTorch's own operators do."""
        for side in self.grads:
            torch.autograd.graph.increment_version([g for g in side if g is not None])

    def twins(self, l: int) -> tuple[Tensor, Tensor] | None:
        """The gradients of pair l as (C_l, ...) views; None if there is nothing to do for it."""
        g_rgb, g_ir = (side[l] for side in self.grads)
        if g_rgb is None or g_ir is None or g_rgb.numel() == 0:
            return None
        axis = self.channel_axes[l]
        return g_rgb.movedim(axis, 0), g_ir.movedim(axis, 0)


class Buckets:
    """Makes the bucket of each step for one set of twins.

    Gradients that differ from the last step's by nothing but their addresses were checked then,
    and are not checked again: the compiled row table recognises them in well under a microsecond
    each. No tensor is kept from step to step.
    """

    def __init__(self, layout: Layout, channel_axes: Sequence[int]) -> None:
        self.layout, self.channel_axes = layout, tuple(channel_axes)
        self._table: Any = None
        self._geometry = 0
        self._memory: dict[str, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_memory": {}}  # a copy makes its own

    def bucket(self, grads_rgb: Grads, grads_ir: Grads, device: torch.device) -> Bucket:
        """Check every pair, or recognise them all. Nothing is written.

        Raises:
            ValueError, TypeError: naming the pair, what was found and the cure.
        """
        table = self._row_table(device)
        grads = grads_rgb, grads_ir
        if table is None:
            check_gradients(grads, self.layout, self.channel_axes, device)
        elif not _recognises(table, grads):
            check_gradients(grads, self.layout, self.channel_axes, device)
            table.set(grads_rgb, grads_ir)
            self._geometry += 1
        geometry = None if table is None else self._geometry
        return Bucket(self.layout, self.channel_axes, grads, device, table, geometry, self._memory)

    def _row_table(self, device: torch.device) -> Any:
        """The compiled table, where there is a compiled module that reads this device's tensors."""
        if compiled.module is None or device.type not in ("cpu", "cuda"):
            return None
        if torch.compiler.is_compiling():  # tensors have no address yet
            return None
        if self._table is None:
            self._table = compiled.module.RowTable(Tensor, self.layout.channels, self.channel_axes)
        return self._table


def _recognises(table: Any, grads: tuple[Grads, Grads]) -> bool:
    try:
        return bool(table.take(*grads))
    except (
        TypeError,
        RuntimeError,
    ):  # not readable by the table: check_gradients raises the precise error
        return False


def check_gradients(
    grads: tuple[Grads, Grads], layout: Layout, channel_axes: Sequence[int], device: torch.device
) -> None:
    """Refuse what cannot be corrected in place: types, shapes, shared memory, devices."""
    _check_lengths(len(grads[0]), len(grads[1]), len(layout.channels))
    for l, (g_rgb, g_ir) in enumerate(zip(*grads, strict=True)):
        if g_rgb is None or g_ir is None:
            continue
        for name, g in (("grads_rgb", g_rgb), ("grads_ir", g_ir)):
            check_gradient(g, f"{name}[{l}]")
            if g.device != device:
                raise ValueError(
                    f"{name}[{l}] is on {g.device}, expected {device} like the rest of this "
                    "call; all gradients and the stats must share one device"
                )
        _check_twins(g_rgb, g_ir, l)
        channels = g_rgb.shape[channel_axes[l]]
        if channels != layout.channels[l]:
            raise ValueError(
                f"stats describe {layout.channels[l]} channels for pair {l}, but its gradients "
                f"have {channels}; pass the gradients in the order the stats were made in"
            )


def _check_lengths(n_rgb: int, n_ir: int, n_stats: int) -> None:
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
    refuse_sharded(g, name)
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


def refuse_sharded(t: Tensor, name: str) -> None:
    """Raise TypeError for a DTensor (known by its mesh, so that its module stays unimported)."""
    if hasattr(t, "device_mesh"):
        raise TypeError(
            f"{name} is sharded over processes ({type(t).__name__}); sharded training (FSDP, "
            "tensor parallelism) is not supported, DistributedDataParallel is"
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
    if torch.compiler.is_compiling() or g_rgb.numel() == 0:
        return  # no addresses
    if g_rgb.device == g_ir.device and g_rgb.data_ptr() == g_ir.data_ptr():
        raise ValueError(
            f"grads_rgb[{l}] and grads_ir[{l}] are the same memory; a weight that both streams "
            "share has no twin: leave it out"
        )
