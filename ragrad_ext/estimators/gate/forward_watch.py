"""See the outputs of whole forwards while their autograd graph is alive."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils import _pytree as pytree


class ForwardWatch:
    """Call ``see(*outputs)`` after every outermost module call whose outputs carry a graph.

    The hook is process-wide, because nothing may be stored on the model. Call ``remove()`` after
    one training step.
    """

    def __init__(self, see: Callable[..., None]) -> None:
        self._see = see
        self._depth = 0
        self._handles = (
            register_module_forward_pre_hook(self._enter),
            # always_call: an exception inside a module must not leave the depth wrong
            register_module_forward_hook(self._leave, always_call=True),
        )

    def _enter(self, module: nn.Module, args: Any) -> None:
        self._depth += 1

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        self._depth -= 1
        if self._depth == 0:
            outputs = [t for t in pytree.tree_leaves(output) if isinstance(t, Tensor)]
            if any(t.grad_fn is not None for t in outputs):
                self._see(*outputs)

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()
