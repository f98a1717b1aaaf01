"""Activations in the autograd graph: which function, and the values that it saved."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from .graph import Node, saved

Function = Callable[[Tensor], Tensor]

HOMOGENEOUS = ("ReluBackward", "LeakyReluBackward")
FUNCTIONS: dict[str, Callable[[Node], Function]] = {
    "ReluBackward": lambda node: F.relu,
    "LeakyReluBackward": lambda node: partial(
        F.leaky_relu, negative_slope=node._saved_negative_slope
    ),
    "SiluBackward": lambda node: F.silu,
    "GeluBackward": lambda node: partial(F.gelu, approximate=node._saved_approximate),
    "HardswishBackward": lambda node: F.hardswish,
    "HardtanhBackward": lambda node: partial(
        torch.clamp, min=node._saved_min_val, max=node._saved_max_val
    ),
    "MishBackward": lambda node: F.mish,
    "EluBackward": lambda node: partial(
        torch.ops.aten.elu,
        alpha=node._saved_alpha,
        scale=node._saved_scale,
        input_scale=node._saved_input_scale,
    ),
}


def function_of(node: Node) -> Function | None:
    """The activation that ``node`` differentiates; None for anything else."""
    make = FUNCTIONS.get(node.name().rstrip("0123456789"))
    return None if make is None else make(node)


def is_homogeneous(node: Node) -> bool:
    """Whether ``f(c z) = c f(z)`` for c > 0, which makes ``f(z) = z f'(z)``."""
    return node.name().startswith(HOMOGENEOUS)


def output_of(node: Node) -> Callable[[], Tensor] | None:
    """A function that returns an activation's output without its graph; None: it was not kept."""
    function, z, a = function_of(node), saved(node, "self"), saved(node, "result")
    if function is None or (z is None and a is None):
        return None
    return (lambda: a) if z is None else (lambda: function(z))  # type: ignore[return-value]
