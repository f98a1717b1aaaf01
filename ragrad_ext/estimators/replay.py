"""Run the model again without leaving a trace."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook


def same_randomness(device: torch.device) -> AbstractContextManager[None]:
    """Restore torch's random state (CPU and ``device``) at the end of a ``with`` block."""
    return torch.random.fork_rng([device] if device.type == "cuda" else [])


@contextmanager
def undisturbed(device: torch.device) -> Iterator[None]:
    """Restore, bit for bit, what forward passes in this block change.

    That is torch's random state (CPU and ``device``) and the buffers of every module that runs,
    such as BatchNorm's running statistics. Two uses in a row start from the same random state, so
    they see the same dropout.

    A process-wide forward hook finds the modules; it exists only inside this block.
    """
    before: dict[nn.Module, dict[str, tuple[Tensor, Tensor]]] = {}

    def remember(module: nn.Module, args: Any) -> None:
        if module not in before:
            before[module] = {
                name: (b, b.detach().clone()) for name, b in module.named_buffers(recurse=False)
            }

    handle = register_module_forward_pre_hook(remember)
    try:
        with same_randomness(device):
            yield
    finally:
        handle.remove()
        for module, buffers in before.items():
            for name, (buffer, value) in buffers.items():
                # .data: a graph that saved this buffer must not count it as modified
                buffer.data.copy_(value)
                module._buffers[name] = buffer
