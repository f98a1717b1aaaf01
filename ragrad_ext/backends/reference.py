"""The literal backend: plain PyTorch, float64, one layer at a time, on any device."""

from __future__ import annotations

import torch
from torch import Tensor

from ..bucket import Bucket
from ..conflicts import Conflicts
from ..rgcr import Options, correct_layer
from .contract import History, Rows, RowSums


class Reference:
    """What every other backend is compared with."""

    name = "reference"

    def unusable(self, device: torch.device) -> str | None:
        return "this device has no float64" if device.type == "mps" else None

    def correct_(self, bucket: Bucket, reliability: Tensor, options: Options) -> Conflicts:
        rows_of = bucket.layout.slices()
        zeros = torch.zeros(bucket.layout.rows, device=bucket.device)
        out = Conflicts(zeros, zeros.clone(), zeros.bool(), zeros.clone(), bucket.layout)
        for l, (g_rgb, g_ir) in enumerate(zip(bucket.rgb, bucket.ir, strict=True)):
            if g_rgb is None or g_ir is None:
                continue
            rows = rows_of[l]
            new = correct_layer(g_rgb, g_ir, reliability[0, rows], reliability[1, rows], options)
            g_rgb.copy_(new.g_rgb)
            g_ir.copy_(new.g_ir)
            out.cosine[rows], out.gap[rows] = new.cosine, new.gap
            out.mask[rows], out.strength[rows] = new.mask, new.strength
        return out

    def observe_(
        self, bucket: Bucket, weights: tuple[Rows, Rows], history: History | None
    ) -> RowSums:
        layout, device = bucket.layout, bucket.device
        dot = torch.zeros(2, layout.rows, dtype=torch.float64, device=device)
        deviation = torch.zeros_like(dot)
        observed = torch.zeros(len(layout.channels), dtype=torch.bool, device=device)
        for l, rows in enumerate(layout.slices()):
            g_rgb, g_ir = bucket.rgb[l], bucket.ir[l]
            if g_rgb is None or g_ir is None:
                continue
            ok = g_rgb.isfinite().all() & g_ir.isfinite().all()
            observed[l] = ok
            for m, g in enumerate((g_rgb, g_ir)):
                g = torch.where(ok, g, 0).double().reshape(g.shape[0], -1)  # (C_l, N_l)
                theta = weights[m][l]
                if theta is not None:
                    dot[m, rows] = (g * theta.reshape(g.shape).double()).sum(1)
                if history is not None:
                    mean = history.mean[m][l]
                    d = g - mean.reshape(g.shape).double()
                    deviating = ok & history.known[l]
                    deviation[m, rows] = torch.where(deviating, d.square().mean(1), 0.0)  # Eq. 4
                    moved = mean + (history.weight[l] * d).reshape(mean.shape)
                    mean.copy_(torch.where(ok, moved, mean))
        return RowSums(dot, deviation, observed)
