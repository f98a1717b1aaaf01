"""Apply: the rewrite of the rows whose matrix is not the identity."""

from __future__ import annotations

import torch
from torch import Tensor

from ..rows.bucket import Bucket


def apply_(bucket: Bucket, mix: Tensor) -> None:
    """``[g_rgb; g_ir] <- M [g_rgb; g_ir]``, row by row.

    A gradient row whose row of M is that of the identity keeps its bytes. A result beyond the
    dtype's range saturates: a correction never makes an inf of finite gradients, since it runs
    after a loss scaler has looked for one.

    Args:
        mix: (rows, 2, 2) float64, M of every row; finite.
    """
    identity = torch.eye(2, dtype=mix.dtype, device=mix.device)
    changed = (mix != identity).any(2)  # (rows, 2)
    for l, rows in enumerate(bucket.layout.slices()):
        twins = bucket.twins(l)
        if twins is None:
            continue
        g_rgb, g_ir = (g.double().reshape(g.shape[0], -1) for g in twins)  # (C_l, N_l)
        for m, g in enumerate(twins):
            own = mix[rows, m]
            new = own[:, :1] * g_rgb + own[:, 1:] * g_ir
            limit = torch.finfo(g.dtype).max
            new = new.clamp(-limit, limit).reshape(g.shape).to(g.dtype)  # rounded once
            g.copy_(torch.where(changed[rows, m].view(-1, *[1] * (g.dim() - 1)), new, g))
