"""Observe: the sums of every row, and the history of Eq. 4."""

from __future__ import annotations

import torch

from ..rows.bucket import Bucket
from ..rows.sums import History, Rows, RowSums


def observe_(bucket: Bucket, weights: tuple[Rows, Rows], history: History | None) -> RowSums:
    """One pass over gradients, weights and history. A weight of None is not read.

    Weights and history are shaped like their gradients; ``history.mean`` moves on.
    """
    layout, device = bucket.layout, bucket.device
    gram = torch.zeros(layout.rows, 3, dtype=torch.float64, device=device)
    g_theta = torch.zeros(2, layout.rows, dtype=torch.float64, device=device)
    deviation = torch.zeros_like(g_theta)
    observed = torch.zeros(2, layout.rows, dtype=torch.bool, device=device)
    for l, rows in enumerate(layout.slices()):
        twins = bucket.twins(l)
        if twins is None:
            continue
        axis = bucket.channel_axes[l]
        g_rgb, g_ir = (g.double().reshape(g.shape[0], -1) for g in twins)  # (C_l, N_l)
        gram[rows, 0], gram[rows, 1] = g_rgb.square().sum(1), g_ir.square().sum(1)
        gram[rows, 2] = (g_rgb * g_ir).sum(1)
        for m, g in enumerate((g_rgb, g_ir)):
            finite = g.isfinite()
            observed[m, rows] = ok = finite.all(1)
            theta = weights[m][l]
            if theta is not None:
                theta = theta.detach().movedim(axis, 0).reshape(g.shape).double()
                g_theta[m, rows] = torch.where(ok, (g * theta).sum(1), 0.0)
            if history is not None:
                mean = history.mean[m][l].movedim(axis, 0)
                mu = mean.reshape(g.shape).double()
                d = g - mu
                deviation[m, rows] = torch.where(ok, d.square().mean(1), 0.0)  # Eq. 4
                moved = mu + history.step_size[m, rows, None] * d
                mean.copy_(torch.where(finite, moved, mu).reshape(mean.shape))
    return RowSums(gram, g_theta, deviation, observed)
