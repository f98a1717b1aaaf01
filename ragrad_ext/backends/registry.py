"""The backends that exist, and the choice among them."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import TypeVar

import torch

from .contract import Backend, Unavailable
from .native import Native
from .reference import Reference
from .triton.backend import Triton

# In the order in which "auto" prefers them.
BACKENDS: tuple[Backend, ...] = (Triton(), Native(), Reference())

T = TypeVar("T")


class Chosen:
    """Has work done by the backend that `select` gives, or by the next one that ``"auto"`` prefers
    where one turns out to be of no use, with a warning.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        self.name, self.device = name, device
        self.backend: Backend | None = None

    def __call__(self, work: Callable[[Backend], T], /) -> T:
        """
        Raises:
            ValueError, RuntimeError: as `select` does; `Unavailable`: the backend was named.
        """
        while True:
            if self.backend is None:
                self.backend = select(self.name, self.device)
            try:
                return work(self.backend)
            except Unavailable as error:
                if self.name != "auto":
                    raise
                self.backend = None
                warnings.warn(f"{error}; going on with another backend", stacklevel=3)


def with_backend(name: str, device: torch.device, work: Callable[[Backend], T]) -> T:
    """One piece of work, as `Chosen` has it done."""
    return Chosen(name, device)(work)


def select(name: str, device: torch.device) -> Backend:
    """The named backend, or for ``"auto"`` the first that is usable on ``device``.

    A warning, once, says why where ``"auto"`` comes down to the reference.

    Raises:
        ValueError: unknown name.
        RuntimeError: the backend that was named, or every one, cannot work here; and why.
    """
    known = {backend.name: backend for backend in BACKENDS}
    if name != "auto" and name not in known:
        choices = ", ".join(f'"{n}"' for n in known)
        raise ValueError(f'backend "{name}" is unknown; choose "auto" or one of {choices}')
    wanted = _preferred(device) if name == "auto" else (known[name],)
    reasons: dict[str, str] = {}
    for backend in wanted:
        reason = backend.unusable(device)
        if reason is None:
            if name == "auto" and backend.name == "reference":
                _warn_once(
                    f"the slow reference serves {device}: {_told(reasons)}. "
                    'backend="reference" asks for it without this warning'
                )
            return backend
        reasons[backend.name] = reason
    raise RuntimeError(
        f"no usable backend on {device}: {_told(reasons)}. "
        "`python -m ragrad_ext doctor` shows what works here"
    )


def _told(reasons: dict[str, str]) -> str:
    return "; ".join(f'"{name}": {reason}' for name, reason in reasons.items())


def _preferred(device: torch.device) -> tuple[Backend, ...]:
    """What ``"auto"`` chooses from. Triton on a CPU is an interpreter: it must be named."""
    return tuple(b for b in BACKENDS if device.type != "cpu" or b.name != "triton")


@functools.cache
def _warn_once(message: str) -> None:
    warnings.warn(message, stacklevel=3)
