"""Notice that a model uses its paired weights differently than before."""

from __future__ import annotations

from collections import Counter
from typing import TypeAlias

from torch import Tensor

from ..rows.twins import Twins
from .gate.graph import Node, Users, consumers

Surroundings: TypeAlias = tuple[tuple[str, ...], ...]
REACH = 4  # operators after a weight: its gradient node, a cast, the convolution, the norm


class GraphChange:
    """Compares the operators around the paired weights with those of the last loss that it saw.

    Values measured before a BatchNorm was frozen, say, have no meaning after it.
    """

    def __init__(self, twins: Twins) -> None:
        self.twins = twins
        self.last: Surroundings | None = None

    def changed(self, loss: Tensor) -> bool:
        """Whether the graph of ``loss`` differs from the last one.

        Only graphs with paired weights count; a teacher's, for example, changes nothing.
        """
        now = surroundings(loss, self.twins)
        if now is None:
            return False
        before, self.last = self.last, now
        return before not in (None, now)


def surroundings(loss: Tensor, twins: Twins) -> Surroundings | None:
    """The names of the operators that follow each weight; None if no weight is in the graph.

    Only names and how often they occur. So a change of the batch size, or of what is further away
    (the images and regions of a detector), does not count. A norm that changes between the
    statistics of the batch and fixed ones counts as another operator.
    """
    users = consumers([loss])
    leaves = {id(node.variable): node for node in users if hasattr(node, "variable")}
    weights = [w for side in twins.weights for w in side]
    if not any(id(w) in leaves for w in weights):
        return None
    return tuple(_following(leaves.get(id(w)), users) for w in weights)


def _following(leaf: Node | None, users: Users) -> tuple[str, ...]:
    names: Counter[str] = Counter()
    level = [] if leaf is None else [leaf]
    for _ in range(REACH):
        level = [user for node in level for user in users[node] if user is not None]
        names.update(_name(node) for node in level)
    return tuple(sorted(names.elements()))


def _name(node: Node) -> str:
    return f"{node.name()}:{getattr(node, '_saved_training', '')}"
