"""Notice that a model uses its paired weights in another way than before."""

from __future__ import annotations

from collections import Counter
from typing import TypeAlias

from torch import Tensor

from ..rows.twins import Twins
from .gate.graph import Node, Users, consumers

Surroundings: TypeAlias = tuple[tuple[str, ...], ...]
REACH = 4  # a weight's gradient node, a cast, the convolution, the normalisation behind it


def surroundings(loss: Tensor, twins: Twins) -> Surroundings | None:
    """The operators within reach above each paired weight, by name; None if none is in the graph.

    Names and how often they occur, no numbers: neither the size of a batch nor anything further
    up, such as the images and regions of a detector, changes them. A normalisation that changes
    between the statistics of the batch and fixed ones counts as another operator.
    """
    users = consumers([loss])
    leaves = {id(node.variable): node for node in users if hasattr(node, "variable")}
    weights = [w for side in twins.weights for w in side]
    if not any(id(w) in leaves for w in weights):
        return None
    return tuple(_above(leaves.get(id(w)), users) for w in weights)


def _above(leaf: Node | None, users: Users) -> tuple[str, ...]:
    names: Counter[str] = Counter()
    level = [] if leaf is None else [leaf]
    for _ in range(REACH):
        level = [user for node in level for user in users[node] if user is not None]
        names.update(_name(node) for node in level)
    return tuple(sorted(names.elements()))


def _name(node: Node) -> str:
    return f"{node.name()}:{getattr(node, '_saved_training', '')}"
