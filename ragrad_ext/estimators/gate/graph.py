"""Walk the autograd graph that leads to a result."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeAlias

from torch import Tensor

Node: TypeAlias = Any  # torch.autograd.graph.Node; its C++ subclasses have no stubs
Users: TypeAlias = dict[Node, list[Node | None]]


def consumers(outputs: Iterable[Tensor]) -> Users:
    """Map each node that leads to ``outputs`` to its users: one entry per use, None for an output.

    The nodes are held, because a node that nobody holds loses its identity.
    """
    found: Users = {}
    for t in outputs:
        if t.grad_fn is not None:
            found.setdefault(t.grad_fn, []).append(None)
    stack = list(found)
    while stack:
        node = stack.pop()
        for child, _ in node.next_functions:
            if child is not None:
                if child not in found:
                    stack.append(child)
                found.setdefault(child, []).append(node)
    return found


def shape_of(node: Node) -> tuple[int, ...]:
    """The shape of what ``node`` computed in the forward."""
    return tuple(node._input_metadata[0].shape)


def saved(node: Node, name: str) -> Tensor | None:
    """The tensor that ``node`` saved as ``name``, detached; None if it cannot be read.

    It cannot be read if hooks on saved tensors (checkpointing, offloading) would have to run. They
    may run only once, and that once belongs to the backward.
    """
    raw = getattr(node, f"_raw_saved_{name}", None)
    if raw is None or raw.unpack_hook is not None:
        return None
    value: Tensor | None = getattr(node, f"_saved_{name}")
    return None if value is None else value.detach()
