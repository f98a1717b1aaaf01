"""What a verb keeps from step to step: the tables of its kernels, on the device."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from operator import is_, itemgetter
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ...rows.bucket import Bucket
from ...rows.conflicts import Conflicts
from ...rows.sums import Rows
from . import plan
from .launch import Launch, triton_type
from .tuning import Tuning, tuning

ABSENT = -(1 << 40)  # in place of an address; not 0, so that all are 64 bits wide
BATCH = 64  # addresses that one launch writes
NAMES = ("grads_rgb", "grads_ir", "weights_rgb", "weights_ir", "mean_rgb", "mean_ir")


class Group:
    """The layers of one launch: equal types, and rows that are all runs or all are not.

    Attributes:
        tables: arguments of every kernel: geometry and addresses of the layers.
        constants: what its kernels are compiled for.
    """

    def __init__(
        self, layers: list[plan.Layer], sides: int, pairs: int, tuned: Tuning, device: torch.device
    ) -> None:
        self.layers = layers
        bytes_ = plan.item_bytes(layers[0])
        self.cuts = [plan.cut(x.channels, x.row_size, bytes_, tuned.limits) for x in layers]
        room = -(-len(layers) * sides // BATCH) * BATCH
        self.tables = {
            "geometry": torch.from_numpy(plan.geometry(layers, self.cuts)).to(device),
            "pointers": torch.zeros(room, dtype=torch.int64, device=device),
        }
        vector = plan.vector_of(layers[0])
        self.constants = {
            "WALK": not layers[0].runs,
            "V": vector,
            "TILE": tuned.limits.tile_bytes // 16 * vector,
        }
        # Where the addresses of its pointer table are among all, side by side; the last is ABSENT.
        wanted = [o * pairs + layer.pair for layer in layers for o in range(sides)]
        self._choose = itemgetter(*wanted, *[-1] * (room - len(wanted)))

    @property
    def dtype(self) -> torch.dtype:
        """Of the gradients."""
        dtype = self.layers[0].dtypes[0]
        assert dtype is not None
        return dtype

    def point(self, addresses: Sequence[int]) -> list[Launch]:
        """What writes the pointer table. The addresses go by value: nothing is copied from here."""
        from .point import point

        chosen = self._choose(addresses)
        return [
            Launch(
                point,
                1,
                {
                    "table": self.tables["pointers"],
                    "first": first,
                    "addresses": chosen[first : first + BATCH],
                    "N": BATCH,
                },
                {"num_warps": 1, "enable_fp_fusion": True},
            )
            for first in range(0, len(chosen), BATCH)
        ]


class Verb:
    """One verb for one geometry: its groups of layers, and what their launches share.

    A verb has a method ``launches``, in the file of its kernel.

    Args:
        operands: beside the gradients, tensors shaped like them; two sides each.

    Raises:
        ValueError: an operand does not belong to its gradient, or a row has too many dimensions.
    """

    sides: ClassVar[int] = 2  # of gradients and operands

    def __init__(self, bucket: Bucket, operands: Sequence[Rows] = ()) -> None:
        self.layout, self.device = bucket.layout, bucket.device
        self.tuned, self.processors = device_of(bucket.device)
        pairs = len(bucket.layout.channels)
        nothing = [None] * pairs
        given = [*bucket.grads, *operands]
        check(given)
        sides = given + [nothing] * (self.sides - len(given))
        found: dict[object, list[plan.Layer]] = {}
        for l, axis in enumerate(bucket.channel_axes):
            one = [side[l] for side in sides]
            if (layer := plan.layer_of(l, bucket.layout.offsets[l], axis, one)) is not None:
                found.setdefault((self.types(layer), layer.runs), []).append(layer)
        self.groups = [
            Group(layers, self.sides, pairs, self.tuned, self.device) for layers in found.values()
        ]
        visited = sum(x.channels for g in self.groups for x in g.layers)
        self.complete = visited == bucket.layout.rows  # whether the kernels visit every row
        self.compiled = self.captured = False
        self._geometry = _geometry(bucket, operands)
        self._operands = [_reference_to(x) for side in operands for x in side]
        self._addresses = _addresses(bucket, operands)
        self._written: list[int] = []  # what the pointer tables hold; empty: not known

    def types(self, layer: plan.Layer) -> tuple[torch.dtype | None, ...]:
        """What the kernel is compiled for."""
        return layer.dtypes[:1]

    def fits(self, bucket: Bucket, operands: Sequence[Rows] = ()) -> bool:
        """Whether nothing has changed since but addresses; those are noted.

        Operands are recognised as the same tensors at the same addresses (whose strides nobody
        changes in place), or by their dtypes, shapes and strides.
        """
        if bucket.device != self.device:
            return False
        addresses = _addresses(bucket, operands)
        pairs = 2 * len(bucket.layout.channels)
        same = (
            bucket.geometry is not None
            and bucket.geometry == self._geometry[0]
            and addresses[pairs:] == self._addresses[pairs:]
            and len(addresses) - pairs == len(self._operands)
            and all(map(is_, (known() for known in self._operands), _flat(operands)))
        )
        if not same:
            if _geometry(bucket, operands) != self._geometry:
                return False
            self._operands = [_reference_to(x) for x in _flat(operands)]
        self._addresses = addresses
        return True

    def point(self) -> list[Launch]:
        """What brings the pointer tables up to date, if an address has changed.

        A captured graph writes its own addresses whenever it is replayed; so from the capture on
        the tables are written at every step, in the graph and out of it.
        """
        if is_capturing(self.device):
            self.captured, self._written = True, []
        if self._addresses == self._written:
            return []
        self._written = [] if self.captured else self._addresses
        absent = self.sides * len(self.layout.channels) + 1 - len(self._addresses)
        given = self._addresses + [ABSENT] * absent
        return [launch for group in self.groups for launch in group.point(given)]

    def upload(self, table: np.ndarray) -> Tensor:
        return torch.from_numpy(table).to(self.device)

    def zeros(self, words: int) -> Tensor:
        """Counters of a launch."""
        return torch.zeros(words, dtype=torch.int32, device=self.device)

    def parts(self, group: Group, sums: int) -> Tensor:
        """Memory for the sums of the pieces of rows."""
        pieces = sum(map(plan.pieces_to_add, group.layers, group.cuts))
        return torch.empty(pieces, sums, dtype=torch.float64, device=self.device)

    def new(self, dtype: torch.dtype, *shape: int, unvisited: float = 0) -> Tensor:
        """Memory for results; rows that no kernel writes get ``unvisited``."""
        if self.complete:
            return torch.empty(shape, dtype=dtype, device=self.device)
        return torch.full(shape, unvisited, dtype=dtype, device=self.device)

    def record(self) -> Conflicts:
        """Memory for what a correction finds."""
        rows = self.layout.rows
        cosine, gap, strength = (self.new(torch.float32, rows) for _ in range(3))
        return Conflicts(cosine, gap, self.new(torch.bool, rows), strength, self.layout)

    def of_gradients(self, group: Group) -> dict[str, Any]:
        """Arguments of every kernel that writes gradients."""
        return {
            **group.tables,
            "largest": torch.finfo(group.dtype).max,
            "DTYPE": triton_type(group.dtype),
            **group.constants,
        }

    def options(self, warps: int) -> dict[str, Any]:
        return {"num_warps": warps, "maxnreg": self.tuned.registers, "enable_fp_fusion": True}


def check(sides: Sequence[Rows]) -> None:
    """Refuse weights and history that do not belong to the gradients."""
    pairs = len(sides[0])
    for name, side in zip(NAMES, sides, strict=False):
        if len(side) != pairs:
            raise ValueError(f"{name} has {len(side)} entries for {pairs} pairs")
        for l, (x, g) in enumerate(zip(side, sides[0], strict=True)):
            if x is None or g is None:
                continue
            if x.shape != g.shape or x.device != g.device:
                raise ValueError(
                    f"{name}[{l}] has another shape or device than the gradient of that pair"
                )
            if not x.is_floating_point() or x.dtype.itemsize == 1:
                raise ValueError(f"{name}[{l}] has a dtype that the triton backend does not read")
    for o in range(0, len(sides), 2):
        for l, (a, b) in enumerate(zip(sides[o], sides[o + 1], strict=True)):
            if a is not None and b is not None and a.dtype != b.dtype:
                raise ValueError(f"{NAMES[o]}[{l}] and its twin have different dtypes")


def device_of(device: torch.device) -> tuple[Tuning, int]:
    """How to launch there, and the number of its multiprocessors."""
    if device.type != "cuda":  # the interpreter: one block after another
        return Tuning(), 1
    processors = torch.cuda.get_device_properties(device).multi_processor_count
    return tuning(torch.cuda.get_device_capability(device)), processors


def is_capturing(device: torch.device) -> bool:
    """Whether a CUDA graph is being captured, so that nothing runs now."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def _geometry(bucket: Bucket, operands: Sequence[Rows]) -> tuple[int | None, list[object]]:
    """All that must not change while addresses do."""
    known = bucket.geometry is not None
    sides = operands if known else (*bucket.grads, *operands)
    shapes: list[object] = [
        None if x is None else (x.dtype, x.shape, x.stride()) for x in _flat(sides)
    ]
    return bucket.geometry, shapes


def _addresses(bucket: Bucket, operands: Sequence[Rows]) -> list[int]:
    sides = *bucket.grads, *operands
    return [ABSENT if x is None else x.data_ptr() for side in sides for x in side]


def _flat(sides: Sequence[Rows]) -> list[Tensor | None]:
    return [x for side in sides for x in side]


def _nothing() -> None:
    return None


def _reference_to(x: Tensor | None) -> Any:
    return _nothing if x is None else weakref.ref(x)
