"""The literal backend: plain PyTorch, float64, one layer at a time, on any device."""

from __future__ import annotations

import torch
from torch import Tensor

from ..rows.bucket import Bucket
from ..rows.conflicts import Conflicts
from ..rules.ragrad import Options, correct_layer
from .contract import History, Rows, RowSums
from .rating import Rating


class Reference(Rating):
    """What every other backend is compared with."""

    name = "reference"

    def unusable(self, device: torch.device) -> str | None:
        return "this device has no float64" if device.type == "mps" else None

    def correct_(
        self,
        bucket: Bucket,
        reliability: Tensor,
        options: Options,
        twin_dots: Tensor | None = None,
    ) -> Conflicts:
        zeros = torch.zeros(bucket.layout.rows, device=bucket.device)
        out = Conflicts(zeros, zeros.clone(), zeros.bool(), zeros.clone(), bucket.layout)
        for l, rows in enumerate(bucket.layout.slices()):
            twins = bucket.twins(l)
            if twins is None:
                continue
            g_rgb, g_ir = twins
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
        observed = torch.zeros(2, layout.rows, dtype=torch.bool, device=device)
        for l, rows in enumerate(layout.slices()):
            axis = bucket.channel_axes[l]
            for m, g in enumerate(bucket.twins(l) or ()):
                g = g.double().reshape(g.shape[0], -1)  # (C_l, N_l)
                finite = g.isfinite()
                observed[m, rows] = ok = finite.all(1)
                theta = weights[m][l]
                if theta is not None:
                    theta = theta.detach().movedim(axis, 0).reshape(g.shape).double()
                    dot[m, rows] = torch.where(ok, (g * theta).sum(1), 0.0)
                if history is not None:
                    mean = history.mean[m][l].movedim(axis, 0)
                    mu = mean.reshape(g.shape).double()
                    d = g - mu
                    deviation[m, rows] = torch.where(ok, d.square().mean(1), 0.0)  # Eq. 4
                    moved = mu + history.weight[m, rows, None] * d
                    mean.copy_(torch.where(finite, moved, mu).reshape(mean.shape))
        return RowSums(dot, deviation, observed)
