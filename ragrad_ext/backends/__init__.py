"""The backends that exist, and the choice among them."""

from __future__ import annotations

import torch

from .contract import Backend, History, Rows, RowSums
from .native import Native
from .operators import Traced
from .reference import Reference

__all__ = ["BACKENDS", "Backend", "History", "RowSums", "Rows", "Traced", "select"]

# In the order in which "auto" prefers them.
BACKENDS: tuple[Backend, ...] = (Native(), Reference())


def select(name: str, device: torch.device) -> Backend:
    """The named backend, or for ``"auto"`` the first that is usable on ``device``.

    Raises:
        ValueError: unknown name.
        RuntimeError: the backend that was named, or every one, cannot work here; and why.
    """
    known = {backend.name: backend for backend in BACKENDS}
    if name != "auto" and name not in known:
        choices = ", ".join(f'"{n}"' for n in known)
        raise ValueError(f'backend "{name}" is unknown; choose "auto" or one of {choices}')
    wanted = BACKENDS if name == "auto" else (known[name],)
    reasons = {b.name: b.unusable(device) for b in wanted}
    for backend in wanted:
        if reasons[backend.name] is None:
            return backend
    why = "; ".join(f'"{n}": {reason}' for n, reason in reasons.items())
    raise RuntimeError(
        f"no usable backend on {device}: {why}. `python -m ragrad_ext doctor` shows what works here"
    )
