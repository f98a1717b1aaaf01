"""Reliability that is given by the user instead of measured."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .layout import Layout


class Reliability:
    """A reliability that is given: R of Eq. 5 for every row of every pair.

    Args:
        rgb, ir: one (C_l,) floating point tensor per pair, values in [0, 1]. They are copied.
            Checking the values waits for the device once; `Repa` never does.

    Raises:
        ValueError, TypeError: unequal lengths or shapes, values outside [0, 1] or nan.
    """

    def __init__(self, rgb: Sequence[Tensor], ir: Sequence[Tensor]) -> None:
        if len(rgb) != len(ir):
            raise ValueError(
                f"Reliability got {len(rgb)} tensors for rgb and {len(ir)} for ir; "
                "pass one (C_l,) tensor per pair for each"
            )
        for l, (r_rgb, r_ir) in enumerate(zip(rgb, ir, strict=True)):
            _check_reliability(r_rgb, f"rgb[{l}]")
            _check_reliability(r_ir, f"ir[{l}]")
            if r_rgb.shape != r_ir.shape:
                raise ValueError(
                    f"rgb[{l}] describes {len(r_rgb)} channels, ir[{l}] {len(r_ir)}; "
                    "twins have as many"
                )
        devices = {r.device for r in (*rgb, *ir)}
        if len(devices) > 1:
            raise ValueError(f"Reliability is on several devices, {devices}; move it to one")
        self.layout = Layout.of([len(r) for r in rgb])
        self.values = torch.zeros(2, self.layout.rows, device=devices.pop() if devices else None)
        for m, parts in enumerate((rgb, ir)):
            for rows, r in zip(self.layout.slices(), parts, strict=True):
                self.values[m, rows] = r.detach()

    @classmethod
    def flat(cls, values: Tensor, layout: Layout) -> Reliability:
        """Wrap (2, rows) values that are known to be right, without reading them."""
        self = cls.__new__(cls)
        self.values, self.layout = values, layout
        return self

    @property
    def device(self) -> torch.device:
        return self.values.device

    @property
    def rgb(self) -> Tensor:
        """(rows,) float32."""
        return self.values[0]

    @property
    def ir(self) -> Tensor:
        """(rows,) float32."""
        return self.values[1]


def _check_reliability(r: Tensor, name: str) -> None:
    if not isinstance(r, Tensor) or not r.is_floating_point():
        found = r.dtype if isinstance(r, Tensor) else type(r).__name__
        raise TypeError(f"Reliability {name} is {found}; pass a floating point tensor")
    if r.dim() != 1:
        raise ValueError(
            f"Reliability {name} has shape {tuple(r.shape)}; pass one value per output channel, "
            "(C_l,)"
        )
    bad = ~((r >= 0) & (r <= 1))  # also true for nan
    if bad.any():
        i = int(bad.nonzero()[0])
        raise ValueError(
            f"Reliability {name}[{i}] is {float(r[i])}; reliabilities lie in [0, 1] (Eq. 5)"
        )
