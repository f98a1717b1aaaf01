"""Find the gate of each row by dataflow in the autograd graph of one forward."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from math import prod
from typing import NamedTuple

from torch import Tensor

from ...rows.twins import Twins
from .activations import FUNCTIONS, function_of, is_homogeneous, output_of
from .graph import Node, Users, saved, shape_of
from .hooks import Add, MixingHooks, NextActivation, hook_activation, hook_norm
from .places import AtActivation, AtGain, AtMixingNorm, AtNorm, AtRow, Place

CONVOLUTION = ("ConvolutionBackward",)
LINEAR = ("AddmmBackward", "MmBackward")
# They use statistics of each channel; in evaluation mode they are a fixed map of it.
NORMS = ("NativeBatchNormBackward", "CudnnBatchNormBackward", "MiopenBatchNormBackward")
SYNC_NORM = ("SyncBatchNormBackward",)
MIXING = ("NativeGroupNormBackward", "NativeLayerNormBackward")
# They change only the shape, the dtype or the position of a value.
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
# They keep a constant channel constant.
FLAT = (*FUNCTIONS, "SigmoidBackward", "TanhBackward", "SoftplusBackward", "MaxPool2DWithIndices")

ABSENT = "not used in the forward that was traced"
HIDDEN = "inside a compiled part"
SEVERAL = "used several times"
SPLIT = "channels split or mixed after it"
NOT_READABLE = "recomputed or moved away (checkpoint, offload)"


class Found(NamedTuple):
    """A place, and how to hook this graph for it.

    Attributes:
        place: where the gate is.
        hook: puts hooks on the graph, which hand what they sum to ``add``; None needs none. It
            holds the graph, so nobody may keep it.
    """

    place: Place
    hook: Callable[[Add], object] | None = None


def at_row(why: str) -> Found:
    return Found(AtRow(why))


def find_places(users: Users, twins: Twins) -> list[list[Found]]:
    """The place of each twin weight, modality first; ``users`` as `consumers` returns it."""
    places = [[at_row(ABSENT)] * len(side) for side in twins.weights]
    index = {w: (m, l) for m, side in enumerate(twins.weights) for l, w in enumerate(side)}
    for node in users:
        weight = getattr(node, "variable", None)
        if weight in index:
            m, l = index[weight]
            places[m][l] = _place(node, twins.channel_axes[l], twins.layout.channels[l], users)
    return places


def _place(weight: Node, axis: int, channels: int, users: Users) -> Found:
    moves, used, ahead = 0, weight, _only_user(weight, users)
    while ahead is not None and _is(ahead, PASSING):
        moves += _is(ahead, MOVING)
        used, ahead = ahead, _only_user(ahead, users)
    if ahead is None:
        return at_row(SEVERAL)
    if _is(ahead, ("CompiledFunction",)):
        return at_row(HIDDEN)
    if _is(ahead, CONVOLUTION):
        if shape_of(ahead)[1] == channels and axis == int(ahead._saved_transposed):
            return _Walk(ahead, channels, prod(shape_of(ahead)[2:]), users).place()
    # x @ W.T has its rows on axis 0, x @ W on axis 1
    elif _is(ahead, LINEAR) and ahead.next_functions[-1][0] is used and moves % 2 == 1 - axis:
        return _Walk(ahead, channels, 1, users).place()
    return at_row("not the output channels of a convolution or linear layer")


class _Walk:
    """From a layer's output towards the loss, to the last place where a removal is exact.

    ``inner`` is the number of elements between two channels of one sample, at the current node.
    """

    def __init__(self, layer: Node, channels: int, inner: int, users: Users) -> None:
        self.layer, self.channels, self.inner, self.users = layer, channels, inner, users

    def place(self) -> Found:
        fixed_map = False  # something scaled or shifted the channels since the layer
        for node, ahead in _way(self.layer, self.users):
            if ahead is None:
                return at_row(f"output {SEVERAL}")
            if _is(ahead, PASSING):
                if not self._follow(node, ahead):
                    return at_row(SPLIT)
            elif _of_this_batch(ahead):
                fits = self.inner == prod(shape_of(ahead)[2:]) and not fixed_map
                return self._own_statistics(ahead) if fits else at_row(SPLIT)
            elif _is(ahead, MIXING):
                return self._mixing(ahead, fixed_map)
            elif _is(ahead, (*NORMS, "MulBackward")) or self._adds_one_value(ahead, node):
                fixed_map = True
            elif _is(ahead, tuple(FUNCTIONS)):
                return self._activation(ahead, fixed_map)
            else:
                name = ahead.name().rstrip("0123456789").removesuffix("Backward")
                return at_row(f"{name} after it")
        raise AssertionError("unreachable: a way ends with None")

    def _follow(self, node: Node, ahead: Node) -> bool:
        """Keep ``inner`` across a node that moves values; False if the channels get lost."""
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

    def _own_statistics(self, norm: Node) -> Found:
        """Without the row its channel is constant, and only the norm's bias is left of it."""
        child = norm.next_functions[1][0]
        gain = None if child is None else _leaf(child, self.users)
        if gain is not None and gain.numel() == self.channels:
            return Found(AtGain(gain))
        if not _is(norm, NORMS):
            return at_row("a SyncBatchNorm whose gain is frozen, absent or shared")
        if shape_of(norm)[1] % self.channels:  # of an InstanceNorm: images x channels
            return at_row(SPLIT)
        if saved(norm, "input") is None:
            return at_row(NOT_READABLE)
        inner = prod(shape_of(norm)[2:])
        return Found(AtNorm(), partial(hook_norm, norm, self.channels, inner))

    def _mixing(self, norm: Node, fixed_map: bool) -> Found:
        known, bias = self._bias()
        shape = shape_of(norm)
        if _is(norm, ("NativeLayerNormBackward",)):
            fits = self.inner == 1 and tuple(norm._saved_normalized_shape) == (self.channels,)
        else:
            fits = shape[1] == self.channels and self.inner == prod(shape[2:])
        if not fits or fixed_map or not known:
            return at_row("a norm over more than channels, or after a frozen bias or scale")
        if saved(norm, "input") is None:
            return at_row(NOT_READABLE)
        following = self._activation_after(norm)
        return Found(
            AtMixingNorm(),
            partial(MixingHooks, norm, self.channels, self.inner, bias, following),
        )

    def _activation_after(self, norm: Node) -> NextActivation | None:
        """The activation that follows, if it can be computed again."""
        known, shift = self._parameter(norm, 2, norm._saved_weight is not None)
        node = _only_user(norm, self.users)
        if not known or node is None or output_of(node) is None:
            return None
        function = function_of(node)
        return None if function is None else NextActivation(node, function, shift)

    def _activation(self, node: Node, fixed_map: bool) -> Found:
        ahead = _only_user(node, self.users)
        while ahead is not None and _is(ahead, FLAT):
            ahead = _only_user(ahead, self.users)
        if ahead is not None and not fixed_map and _of_this_batch(ahead):
            return self._own_statistics(ahead)
        if is_homogeneous(node) and not fixed_map and self._bias() == (True, None):
            return at_row("no bias: as good as after the activation")
        function = function_of(node)
        if function is None or output_of(node) is None:
            return at_row(NOT_READABLE)
        hook = partial(hook_activation, node, self.channels, self.inner)
        return Found(AtActivation(function), hook)

    def _bias(self) -> tuple[bool, Tensor | None]:
        """Whether it is known what the layer adds to its rows, and what that is (None: nothing)."""
        layer = self.layer
        if _is(layer, CONVOLUTION):
            return self._parameter(layer, 2, tuple(layer._saved_bias_sym_sizes_opt) != (0,))
        return self._parameter(layer, 0, True) if _is(layer, ("Addmm",)) else (True, None)

    def _parameter(self, node: Node, k: int, present: bool) -> tuple[bool, Tensor | None]:
        """A parameter with one value per channel at input k; unknown if frozen or computed."""
        child = node.next_functions[k][0]
        leaf = None if child is None else _leaf(child, self.users)
        known = not present if child is None else leaf is not None and leaf.numel() == self.channels
        return known, leaf.detach() if known and leaf is not None else None


def _of_this_batch(node: Node) -> bool:
    """Whether ``node`` normalises each channel by statistics of this very batch."""
    return _is(node, SYNC_NORM) or (_is(node, NORMS) and bool(node._saved_training))


def _way(node: Node, users: Users) -> Iterator[tuple[Node, Node | None]]:
    """Step by step towards the loss: (node, its only user); (node, None) ends it."""
    ahead = _only_user(node, users)
    while ahead is not None:
        yield node, ahead
        node, ahead = ahead, _only_user(ahead, users)
    yield node, None


def _only_user(node: Node, users: Users) -> Node | None:
    return users[node][0] if len(users[node]) == 1 else None


def _leaf(node: Node, users: Users) -> Tensor | None:
    """The parameter that ``node`` reads, if only its shape or dtype was changed."""
    while len(users[node]) == 1 and _is(node, (*PASSING, "RepeatBackward")):
        node = node.next_functions[0][0]
    return getattr(node, "variable", None) if len(users[node]) == 1 else None


def _order(node: Node, ndim: int) -> list[int]:
    """The axes of the input of ``node``, one of MOVING, in the order of its output."""
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
