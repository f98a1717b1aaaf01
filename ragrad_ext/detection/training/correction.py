"""RaGrad as the settings ask for it, and what it says about a step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ragrad_ext import RaGrad

from ..seeds import METHOD, derive_seed
from ..settings import ESTIMATORS, Settings


def make_ragrad(model: Any, settings: Settings) -> RaGrad:
    """RaGrad on the model's two streams, `model.backbone.rgb` and `model.backbone.ir`."""
    estimator, probes = ESTIMATORS[settings.effectiveness]
    options: dict[str, Any] = {}
    if probes:
        seed = derive_seed(settings.seed, METHOD) % 2**31
        options = {"every": settings.every, "seed": seed}
    return RaGrad(
        model.backbone.rgb,
        model.backbone.ir,
        effectiveness=estimator(**options),
        **settings.ragrad_arguments(),
    )


def layer_statistics(ragrad: RaGrad) -> tuple[float, Tensor]:
    """The latest step's conflict fraction, and by layer (3, L): conflict fraction, R rgb, R ir.

    Raises RuntimeError before the first correction.
    """
    last, reliability = ragrad.last, ragrad.repa.reliability
    if last is None or reliability is None:
        raise RuntimeError("RaGrad has corrected nothing yet; call correct_() first")
    rows = torch.stack([last.mask.double(), reliability.rgb.double(), reliability.ir.double()])
    rows = rows.cpu()
    sizes = torch.tensor(last.offsets).diff()
    layer_of_row = torch.arange(len(sizes)).repeat_interleave(sizes)
    sums = torch.zeros(3, len(sizes), dtype=torch.float64).index_add_(1, layer_of_row, rows)
    return float(rows[0].mean()), sums / sizes.clamp(min=1)
