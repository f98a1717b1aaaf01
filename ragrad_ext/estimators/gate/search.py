"""Where the gate of a row sits: found by dataflow in the autograd graph of one forward."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from math import prod
from typing import Literal

from torch import Tensor

from ...rows.twins import Twins
from .activations import FUNCTIONS, Function, function_of, is_homogeneous, output_of
from .graph import Node, Users, saved, shape_of

Kind = Literal["gain", "norm", "mixing", "activation", "row"]

CONVOLUTION = ("ConvolutionBackward",)
LINEAR = ("AddmmBackward", "MmBackward")
# Statistics of a channel's own, unless in evaluation mode; then a fixed map of each channel.
NORMS = ("NativeBatchNormBackward", "CudnnBatchNormBackward", "MiopenBatchNormBackward")
SYNC_NORM = ("SyncBatchNormBackward",)
MIXING = ("NativeGroupNormBackward", "NativeLayerNormBackward")
# Nodes that pass every value on unchanged, but for shape, dtype or place.
MOVING = ("TBackward", "TransposeBackward", "PermuteBackward")
PASSING = (
    *MOVING,
    "ViewBackward",
    "UnsafeViewBackward",
    "ReshapeAliasBackward",
    "AliasBackward",
    "CloneBackward",
    "ToCopyBackward",
    "SqueezeBackward",
    "UnsqueezeBackward",
)
# A channel that is the same everywhere stays so.
FLAT = (*FUNCTIONS, "SigmoidBackward", "TanhBackward", "SoftplusBackward", "MaxPool2DWithIndices")

ABSENT = "not used in the forward that was traced"
HIDDEN = "inside a compiled part"
SEVERAL = "used several times"
SPLIT = "channels split or mixed behind it"
NOT_READABLE = "recomputed or moved away (checkpoint, offload)"


@dataclass(frozen=True)
class Place:
    """The gate of all rows of one weight.

    Attributes:
        kind: ``gain``: behind a norm with statistics of the channel, read off its gain's gradient.
            ``norm``: the same by a hook on the norm, whose gain is frozen, absent or shared.
            ``mixing``: behind a GroupNorm or LayerNorm, and an activation that follows, by hooks.
            ``activation``: behind the first activation, by a hook. ``row``: the row's own output.
        why: of ``row``: why the gate sits no further.
        gain: of ``gain``.
        norm, activation: nodes to hook. They hold the graph, so nobody may keep them.
        function: of that activation.
        bias: what remains of the layer's output without the row, (C,); None is 0.
        shift: bias of the norm, (C,); None is 0.
        inner: elements between two channels of one sample, in logical order, at the first node.
    """

    kind: Kind
    why: str = ""
    gain: Tensor | None = None
    norm: Node = field(default=None, repr=False)
    activation: Node = field(default=None, repr=False)
    function: Function | None = field(default=None, repr=False)
    bias: Tensor | None = field(default=None, repr=False)
    shift: Tensor | None = field(default=None, repr=False)
    inner: int = 1

    @property
    def hooked(self) -> bool:
        return self.kind in ("norm", "mixing", "activation")

    def without_graph(self) -> Place:
        return replace(self, norm=None, activation=None)


def find_places(users: Users, twins: Twins) -> list[list[Place]]:
    """The place of each twin weight, modality first; ``users`` as `consumers` returns it."""
    places = [[Place("row", ABSENT)] * len(side) for side in twins.weights]
    index = {w: (m, l) for m, side in enumerate(twins.weights) for l, w in enumerate(side)}
    for node in users:
        weight = getattr(node, "variable", None)
        if weight in index:
            m, l = index[weight]
            places[m][l] = _place(node, twins.channel_axes[l], twins.layout.channels[l], users)
    return places


def _place(weight: Node, axis: int, channels: int, users: Users) -> Place:
    moves, used, ahead = 0, weight, _only_user(weight, users)
    while ahead is not None and _is(ahead, PASSING):
        moves += _is(ahead, MOVING)
        used, ahead = ahead, _only_user(ahead, users)
    if ahead is None:
        return Place("row", SEVERAL)
    if _is(ahead, ("CompiledFunction",)):
        return Place("row", HIDDEN)
    if _is(ahead, CONVOLUTION):
        whole = shape_of(ahead)[1] == channels and axis == int(ahead._saved_transposed)
        return (
            _Walk(ahead, channels, prod(shape_of(ahead)[2:]), users).place() if whole else NO_ROWS
        )
    # x @ W.T has its rows on axis 0, x @ W on axis 1
    if _is(ahead, LINEAR) and ahead.next_functions[-1][0] is used and moves % 2 == 1 - axis:
        return _Walk(ahead, channels, 1, users).place()
    return NO_ROWS


NO_ROWS = Place("row", "not the output channels of a convolution or linear layer")


class _Walk:
    """From a layer's output towards the loss, to the last place that a gate reaches exactly."""

    def __init__(self, layer: Node, channels: int, inner: int, users: Users) -> None:
        self.layer, self.channels, self.inner, self.users = layer, channels, inner, users

    def place(self) -> Place:
        fixed_map = False  # something scaled or shifted the channels since the layer
        for node, ahead in _way(self.layer, self.users):
            if ahead is None:
                return Place("row", f"output {SEVERAL}")
            if _is(ahead, PASSING):
                if not self._follow(node, ahead):
                    return Place("row", SPLIT)
            elif _of_this_batch(ahead):
                fits = self.inner == prod(shape_of(ahead)[2:]) and not fixed_map
                return self._own_statistics(ahead) if fits else Place("row", SPLIT)
            elif _is(ahead, MIXING):
                return self._mixing(ahead, fixed_map)
            elif _is(ahead, (*NORMS, "MulBackward")) or self._adds_one_value(ahead, node):
                fixed_map = True
            elif _is(ahead, tuple(FUNCTIONS)):
                return self._activation(ahead, fixed_map)
            else:
                name = ahead.name().rstrip("0123456789").removesuffix("Backward")
                return Place("row", f"{name} behind it")
        raise AssertionError("a way has an end")

    def _follow(self, node: Node, ahead: Node) -> bool:
        """Keep ``inner`` over a node that moves values; False where the channels get lost."""
        if not _is(ahead, MOVING):
            return True  # logical order stays
        shape = shape_of(node)
        axes = [
            j
            for j, n in enumerate(shape)
            if n == self.channels and prod(shape[j + 1 :]) == self.inner
        ]
        if not axes:
            return False
        order = _order(ahead, len(shape))
        self.inner = prod(shape[k] for k in order[order.index(axes[0]) + 1 :])
        return True

    def _adds_one_value(self, ahead: Node, node: Node) -> bool:
        """Whether ``ahead`` adds a constant or one trainable value per channel, not a branch."""
        if not _is(ahead, ("AddBackward",)):
            return False
        other = [
            child for child, _ in ahead.next_functions if child is not None and child is not node
        ]
        leaves = [_leaf(child, self.users) for child in other]
        return all(leaf is not None and leaf.numel() == self.channels for leaf in leaves)

    def _own_statistics(self, norm: Node) -> Place:
        """Without the row its channel is flat, and only the norm's bias is left of it."""
        child = norm.next_functions[1][0]
        gain = None if child is None else _leaf(child, self.users)
        if gain is not None and gain.numel() == self.channels:
            return Place("gain", gain=gain)
        if not _is(norm, NORMS):
            return Place("row", "a SyncBatchNorm whose gain is frozen, absent or shared")
        if shape_of(norm)[1] % self.channels:  # of an InstanceNorm: images x channels
            return Place("row", SPLIT)
        if saved(norm, "input") is None:
            return Place("row", NOT_READABLE)
        return Place("norm", norm=norm, inner=prod(shape_of(norm)[2:]))

    def _mixing(self, norm: Node, fixed_map: bool) -> Place:
        known, bias = self._bias()
        shape = shape_of(norm)
        if _is(norm, ("NativeLayerNormBackward",)):
            fits = self.inner == 1 and tuple(norm._saved_normalized_shape) == (self.channels,)
        else:
            fits = shape[1] == self.channels and self.inner == prod(shape[2:])
        if not fits or fixed_map or not known:
            return Place("row", "a norm over more than channels, or behind a frozen bias or scale")
        if saved(norm, "input") is None:
            return Place("row", NOT_READABLE)
        place = Place("mixing", norm=norm, bias=bias, inner=self.inner)
        known, shift = self._parameter(norm, 2, norm._saved_weight is not None)
        activation = _only_user(norm, self.users)
        if not known or activation is None or output_of(activation) is None:
            return place
        function = function_of(activation)
        return replace(place, activation=activation, function=function, shift=shift)

    def _activation(self, node: Node, fixed_map: bool) -> Place:
        ahead = _only_user(node, self.users)
        while ahead is not None and _is(ahead, FLAT):
            ahead = _only_user(ahead, self.users)
        if ahead is not None and not fixed_map and _of_this_batch(ahead):
            return self._own_statistics(ahead)
        if is_homogeneous(node) and not fixed_map and self._bias() == (True, None):
            return Place("row", "no bias: as good as behind the activation")
        if output_of(node) is None:
            return Place("row", NOT_READABLE)
        return Place("activation", activation=node, function=function_of(node), inner=self.inner)

    def _bias(self) -> tuple[bool, Tensor | None]:
        """Whether it is known what the layer adds to its rows, and that, if anything."""
        layer = self.layer
        if _is(layer, CONVOLUTION):
            return self._parameter(layer, 2, tuple(layer._saved_bias_sym_sizes_opt) != (0,))
        return self._parameter(layer, 0, True) if _is(layer, ("Addmm",)) else (True, None)

    def _parameter(self, node: Node, k: int, present: bool) -> tuple[bool, Tensor | None]:
        """A parameter of one value a channel at input k; unknown if frozen or computed."""
        child = node.next_functions[k][0]
        leaf = None if child is None else _leaf(child, self.users)
        known = not present if child is None else leaf is not None and leaf.numel() == self.channels
        return known, leaf.detach() if known and leaf is not None else None


def _of_this_batch(node: Node) -> bool:
    """Whether ``node`` normalises each channel by statistics of this very batch."""
    return _is(node, SYNC_NORM) or (_is(node, NORMS) and bool(node._saved_training))


def _way(node: Node, users: Users) -> Iterator[tuple[Node, Node | None]]:
    """Step by step towards the loss, (node, its user), while it has one; then (node, None)."""
    ahead = _only_user(node, users)
    while ahead is not None:
        yield node, ahead
        node, ahead = ahead, _only_user(ahead, users)
    yield node, None


def _only_user(node: Node, users: Users) -> Node | None:
    return users[node][0] if len(users[node]) == 1 else None


def _leaf(node: Node, users: Users) -> Tensor | None:
    """The parameter behind ``node`` if nothing but shape or dtype changes lie between."""
    while len(users[node]) == 1 and _is(node, (*PASSING, "RepeatBackward")):
        node = node.next_functions[0][0]
    return getattr(node, "variable", None) if len(users[node]) == 1 else None


def _order(node: Node, ndim: int) -> list[int]:
    """The axes of what ``node``, one of MOVING, was given, in the order it puts them."""
    order = list(range(ndim))
    if _is(node, ("PermuteBackward",)):
        return [_signed(d) % ndim for d in node._saved_dims]
    i, j = 0, 1
    if _is(node, ("TransposeBackward",)):
        i, j = (_signed(d) % ndim for d in (node._saved_dim0, node._saved_dim1))
    order[i], order[j] = order[j], order[i]
    return order


def _signed(d: int) -> int:
    return d - 2**64 if d >= 2**63 else d  # the graph keeps axes unsigned


def _is(node: Node, names: Iterable[str]) -> bool:
    return bool(node.name().startswith(tuple(names)))
