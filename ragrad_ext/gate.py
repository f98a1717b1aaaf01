"""The gate: Eq. 1 to first order in a switch on each row's output, read off the step's gradient."""

from __future__ import annotations

import warnings
from collections import Counter

from torch import Tensor

from .backends.contract import RowSums
from .bucket import Bucket
from .effectiveness import Closure, Effectiveness
from .graph import Node, consumers
from .twins import Twins

# Normalisations with statistics of their own per channel: the loss is blind to a row's scale.
NORMS = ("NativeBatchNormBackward", "CudnnBatchNormBackward", "MiopenBatchNormBackward")
SYNC_NORM = "SyncBatchNormBackward"
PRODUCERS = ("ConvolutionBackward", "AddmmBackward", "MmBackward", "LinearBackward")
# Nodes that pass every value on unchanged, but for shape, dtype or place.
PASSING = (
    "ViewBackward",
    "UnsafeViewBackward",
    "ReshapeAliasBackward",
    "AliasBackward",
    "CloneBackward",
    "ToCopyBackward",
    "TBackward",
    "TransposeBackward",
    "PermuteBackward",
    "RepeatBackward",
    "SqueezeBackward",
    "UnsqueezeBackward",
)


class Gate(Effectiveness):
    """First order in a gate ``a_i = 1`` on the output of each row: ``E = -dL/da_i``. Free.

    For most rows that is ``-sum_j g_j theta_j``. A normalisation with statistics of its own per
    channel (BatchNorm, InstanceNorm, SyncBatchNorm, in training mode) makes the loss blind to a
    row's scale; there the gate moves behind it, onto the gain: zeroing the row leaves only the
    normalisation's bias, and ``E = -gamma_i dL/dgamma_i``.

    Which gain stands behind which row is read from the autograd graph of one ordinary forward,
    by dataflow: the first ``before_backward`` does it, or call ``trace`` on any output. Rows
    without such a gain (none, frozen, or used by several layers) keep ``-sum_j g_j theta_j``, and
    so do all rows of a gate that was never traced. A model compiled by ``torch.compile`` hides its
    graph: trace one forward of the plain model first.

    Attributes:
        gains: modality first, for each pair the gain behind it or None; None before the trace.
    """

    gains: list[list[Tensor | None]] | None = None

    def before_backward(self, loss: Tensor, closure: Closure | None = None) -> None:
        if self.gains is None:
            self.trace(loss)

    def trace(self, *outputs: Tensor) -> None:
        """Find the gains in the graph behind ``outputs``, which must not be freed yet.

        A graph that holds none of the paired weights, a teacher's say, changes nothing.
        """
        uses = consumers(outputs)
        paired = {id(w) for side in self.twins.weights for w in side}
        if not any(id(getattr(node, "variable", None)) in paired for node in uses):
            return
        if any(node.name().startswith("CompiledFunction") for node in uses):
            warnings.warn(
                "a compiled part of the model hides its normalisations from Gate; rows there keep "
                "-g.theta, which is noise behind a BatchNorm. Show it the plain model once: "
                "ragrad.repa.effectiveness.trace(model(batch)), before torch.compile",
                stacklevel=2,
            )
        self.gains = find_gains(uses, self.twins)

    def reads_weight(self, m: int, l: int) -> bool:
        return self._gain(m, l) is None

    def scores(self, bucket: Bucket, sums: RowSums) -> Tensor:
        score = -sums.dot
        for m in (0, 1):
            for l, rows in enumerate(self.twins.layout.slices()):
                gain = self._gain(m, l)
                if gain is not None and gain.grad is not None:
                    score[m, rows] = -(gain.detach().double() * gain.grad.double())
        return score

    def _gain(self, m: int, l: int) -> Tensor | None:
        gain = None if self.gains is None else self.gains[m][l]
        return None if gain is None or gain.grad is None else gain


def find_gains(uses: Counter[Node], twins: Twins) -> list[list[Tensor | None]]:
    """The gain of the normalisation right behind each twin weight, or None; modality first.

    Args:
        uses: the autograd graph, as `consumers` returns it. A gain counts only if the weight, its
            output and the gain are each used once: otherwise its gradient tells of more than
            this row.
    """
    index = {w: (m, l) for m, side in enumerate(twins.weights) for l, w in enumerate(side)}
    gains: list[list[Tensor | None]] = [[None] * len(side) for side in twins.weights]
    for node in uses:
        inputs = [child for child, _ in node.next_functions]
        if not _normalises(node) or inputs[0] is None or inputs[1] is None:
            continue
        gain = _leaf(inputs[1], uses)
        source = _pass_through(inputs[0], uses)
        if gain is None or source is None or not source.name().startswith(PRODUCERS):
            continue
        for child, _ in source.next_functions:
            weight = None if child is None else _leaf(child, uses)
            if weight in index:
                m, l = index[weight]
                if gain.numel() == twins.layout.channels[l]:
                    gains[m][l] = gain
    return gains


def _normalises(node: Node) -> bool:
    """Whether ``node`` normalises each channel by statistics of this very batch."""
    name = node.name()
    if name.startswith(NORMS):
        # BatchNorm in evaluation mode is a fixed affine map: the loss sees the row's scale.
        return bool(getattr(node, "_saved_training", True))
    return bool(name.startswith(SYNC_NORM))


def _pass_through(node: Node, uses: Counter[Node]) -> Node | None:
    """The first node behind ``node`` that computes something; None if used more than once."""
    while uses[node] == 1:
        if not node.name().startswith(PASSING):
            return node
        node = node.next_functions[0][0]
    return None


def _leaf(node: Node, uses: Counter[Node]) -> Tensor | None:
    """The parameter behind ``node`` if nothing but shape or dtype changes lie between."""
    end = _pass_through(node, uses)
    return getattr(end, "variable", None)
