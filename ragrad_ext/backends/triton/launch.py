"""Kernel launches: compiled all together, before the first of them writes anything."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch


class Launch(NamedTuple):
    """One launch of a kernel, with its arguments by name."""

    kernel: Any
    grid: int
    arguments: dict[str, Any]
    options: dict[str, Any]


def compile_(launches: Sequence[Launch], device: torch.device) -> None:
    """Compile what is to be launched, and load it onto the device; launch nothing."""
    with on_device(device):
        for kernel, grid, arguments, options in launches:
            compiled = kernel.warmup(grid=(grid,), **arguments, **options)
            getattr(compiled, "run", None)  # loads it


def start(launches: Sequence[Launch], device: torch.device) -> None:
    """Launch, one after another, on the current stream."""
    with on_device(device):
        for kernel, grid, arguments, options in launches:
            kernel[(grid,)](**arguments, **options)


def on_device(device: torch.device) -> AbstractContextManager[Any]:
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def triton_type(dtype: torch.dtype) -> Any:
    """Triton's name of a dtype."""
    import triton.language as tl

    names = {
        torch.float64: tl.float64,
        torch.float32: tl.float32,
        torch.bfloat16: tl.bfloat16,
        torch.float16: tl.float16,
    }
    return names[dtype]
