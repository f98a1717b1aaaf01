"""`correct_`: check the gradients, observe them, correct them in place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

import torch
from torch import Tensor

from .backends import Backend, Traced, with_backend
from .repa import Repa
from .rows.conflicts import Conflicts
from .rows.reliability import Reliability
from .rules.ragrad import Identify, Options, Resolve


@torch.no_grad()
def correct_(
    grads_rgb: Sequence[Tensor | None],
    grads_ir: Sequence[Tensor | None],
    stats: Reliability | Repa,
    *,
    backend: str = "auto",
    identify: Identify = "dual",
    resolve: Resolve = "blend",
    eps: float = 1e-30,
) -> Conflicts:
    """Correct the gradients of the less reliable modality in place (Eq. 6-10).

    Args:
        grads_rgb, grads_ir: L twins, each a (C_l, ...) float32, bfloat16 or float16 tensor of
            any dense strides. None on either side skips the pair. Only the weak rows of
            conflict channels are written; a pair that holds an inf or nan is left as it is.
        stats: a `Reliability` (correction alone), or a `Repa`: then this one call observes the
            gradients (Eq. 2-5) and corrects them.
        backend: ``"auto"`` or a name that ``python -m ragrad_ext doctor`` lists.
        identify: ``"dual"``: Eq. 6. ``"cosine"``: every row with a negative cosine (Table 7).
        resolve: ``"blend"``: Eq. 8-10. ``"project"``: Eq. 8 alone (Table 7).
        eps: guards Eq. 8 and 10 against 0/0; not meant to change any other result.

    Returns:
        What was found, row by row. Nothing waits for the device until it is read.

    Raises:
        ValueError, TypeError, RuntimeError: naming the pair, what was found and the cure,
            before any gradient or statistic is touched.
    """
    if not isinstance(stats, Reliability | Repa):
        raise TypeError(f"stats is {type(stats).__name__}; pass a Reliability or a Repa")
    options = check_options(identify, resolve, eps)
    device = stats.device
    if isinstance(stats, Repa):  # its state follows the gradients when the model has moved
        tensors = (g for g in (*grads_rgb, *grads_ir) if isinstance(g, torch.Tensor))
        device = next((g.device for g in tensors), device)

    def step(chosen: Backend) -> Conflicts:
        bucket = stats.buckets.bucket(grads_rgb, grads_ir, device)
        if isinstance(stats, Repa):
            return stats.correct_(bucket, chosen, options)
        return chosen.correct_(bucket, stats.values, options)

    if torch.compiler.is_compiling():
        return step(Traced(backend))
    return with_backend(backend, device, step)


def check_options(identify: Identify, resolve: Resolve, eps: float) -> Options:
    """The options of `correct_`, or the error that says which one is wrong."""
    for name, value, choices in (
        ("identify", identify, get_args(Identify)),
        ("resolve", resolve, get_args(Resolve)),
    ):
        if value not in choices:
            raise ValueError(f"{name}={value!r} is unknown; choose one of {choices}")
    if not 0 < eps < float("inf"):
        raise ValueError(f"eps={eps!r} cannot guard a division; pass a small positive number")
    return Options(identify, resolve, float(eps))
