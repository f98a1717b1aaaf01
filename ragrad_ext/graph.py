"""Walk the autograd graph behind a result."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any, TypeAlias

from torch import Tensor

Node: TypeAlias = Any  # torch.autograd.graph.Node; its C++ subclasses have no stubs


def consumers(outputs: Iterable[Tensor]) -> Counter[Node]:
    """Every node behind ``outputs`` with how often it is used; an output, once by its holder.

    The nodes are held, because a node that nobody holds loses its identity.
    """
    found: Counter[Node] = Counter(t.grad_fn for t in outputs if t.grad_fn is not None)
    stack = list(found)
    while stack:
        for child, _ in stack.pop().next_functions:
            if child is not None:
                if child not in found:
                    stack.append(child)
                found[child] += 1
    return found
