"""What the Triton backend keeps from step to step: device tables, queues, workspace, launches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...rows.bucket import Bucket
from ...rules.ragrad import Options
from ..contract import Rows
from . import plan
from .tuning import Tuning, tuning

ABSENT = -(1 << 40)  # in place of an address; not 0, so that all are 64 bits wide
BATCH = 64  # addresses that one launch writes
POINT: dict[str, Any] = {"num_warps": 1, "enable_fp_fusion": True}  # of that launch

Record = tuple[Tensor, Tensor, Tensor, Tensor]  # cosine, gap, mask, strength
Sums = tuple[Tensor, ...]  # dot, deviation, observed, twin_dots
NAMES = ("grads_rgb", "grads_ir", "weights_rgb", "weights_ir", "mean_rgb", "mean_ir")


class Group:
    """The layers of one launch: equal types, and rows that are all runs or all are not."""

    def __init__(
        self, layers: list[plan.Layer], operands: int, sums: int, tuned: Tuning, device: Any
    ) -> None:
        self.layers, self.operands, self.device = layers, operands, device
        self.walk = not layers[0].runs
        self.item_bytes, self.vector = plan.item_bytes(layers[0]), plan.vector_of(layers[0])
        self.cuts = [
            plan.cut(x.channels, x.row_size, self.item_bytes, tuned.limits) for x in layers
        ]
        self.geometry = self.upload(plan.geometry(layers, self.cuts))
        pieces = sum(map(plan.pieces_to_add, layers, self.cuts))
        self.parts = torch.empty(pieces, sums, dtype=torch.float64, device=device)
        self.counters = torch.zeros(2 + 3 * len(layers), dtype=torch.int32, device=device)
        room = -(-len(layers) * operands // BATCH) * BATCH
        self.pointers = torch.zeros(room, dtype=torch.int64, device=device)
        self.addresses: list[int] = []  # what the device's table holds; empty: not known
        self.tile = tuned.limits.tile_bytes // 16 * self.vector
        self.queues: dict[object, list[Tensor]] = {}

    def upload(self, table: np.ndarray) -> Tensor:
        return torch.from_numpy(table).to(self.device)

    def point(self, sides: Sequence[Rows], captured: bool) -> None:
        """Bring the pointer table up to date, if an address changed. Copies nothing from here.

        A captured graph may have written other addresses whenever it was replayed; so from then
        on the table is written at every step, in the graph and out of it.
        """
        addresses = [
            ABSENT if (x := side[layer.pair]) is None else x.data_ptr()
            for layer in self.layers
            for side in sides
        ]
        if addresses == self.addresses:
            return
        self.addresses = [] if captured else addresses
        room = [ABSENT] * (len(self.pointers) - len(addresses))
        from . import rows as triton_rows

        for first in range(0, len(self.pointers), BATCH):
            batch = tuple((addresses + room)[first : first + BATCH])
            triton_rows.point[(1,)](self.pointers, first, batch, BATCH, **POINT)


class Work(ABC):
    """Observing or correcting, for one geometry: its groups, and what they share."""

    operands: int
    sums: int
    warps: int

    def __init__(self, bucket: Bucket, operands: Sequence[Rows]) -> None:
        self.geometry, self.shapes = bucket.geometry, _shapes(bucket, operands)
        self.layout, self.device = bucket.layout, bucket.device
        self.tuned, self.processors = device_of(bucket.device)
        sides = self.sides(bucket, operands)
        self.check(bucket, sides)
        found: dict[object, list[plan.Layer]] = {}
        for l, axis in enumerate(bucket.channel_axes):
            one = [side[l] for side in sides]
            if (layer := plan.layer_of(l, bucket.layout.offsets[l], axis, one)) is not None:
                found.setdefault((self.types(layer), layer.runs), []).append(layer)
        self.groups = [
            Group(layers, self.operands, self.sums, self.tuned, self.device)
            for layers in found.values()
        ]
        visited = sum(x.channels for g in self.groups for x in g.layers)
        self.complete = visited == bucket.layout.rows  # whether the kernels visit every row
        self.captured = False

    def sides(self, bucket: Bucket, operands: Sequence[Rows]) -> list[Rows]:
        none = [None] * len(bucket.layout.channels)
        given = [*bucket.grads, *operands]
        return given + [none] * (self.operands - len(given))

    def check(self, bucket: Bucket, sides: Sequence[Rows]) -> None:
        """Refuse weights and history that do not belong to the gradients."""
        pairs = len(bucket.layout.channels)
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
                    raise ValueError(
                        f"{name}[{l}] has a dtype that the triton backend does not read"
                    )
        for o in range(plan.GRADIENT, len(sides), 2):
            for l, (a, b) in enumerate(zip(sides[o], sides[o + 1], strict=True)):
                if a is not None and b is not None and a.dtype != b.dtype:
                    raise ValueError(f"{NAMES[o]}[{l}] and its twin have different dtypes")

    def fits(self, bucket: Bucket, operands: Sequence[Rows]) -> bool:
        """Whether nothing changed but addresses."""
        if bucket.device != self.device:
            return False
        if bucket.geometry is not None and not operands:
            return bucket.geometry == self.geometry
        return _shapes(bucket, operands) == self.shapes

    def point(self, bucket: Bucket, operands: Sequence[Rows]) -> None:
        if _capturing(self.device):
            self.captured = True
            kept = bucket.memory.setdefault("captured", [])  # the graph will come back to it
            if self not in kept:
                kept.append(self)
            for group in self.groups:
                group.addresses = []
        sides = self.sides(bucket, operands)
        with on_device(self.device):
            for group in self.groups:
                group.point(sides, self.captured)

    def new(self, dtype: torch.dtype, *shape: int, unvisited: float = 0) -> Tensor:
        """Memory for results, one for every row; ``unvisited`` where no kernel comes by."""
        if self.complete:
            return torch.empty(shape, dtype=dtype, device=self.device)
        return torch.full(shape, unvisited, dtype=dtype, device=self.device)

    def record(self) -> Record:
        """Memory for what a correction finds."""
        rows = self.layout.rows
        cosine, gap, strength = (self.new(torch.float32, rows) for _ in range(3))
        return cosine, gap, self.new(torch.bool, rows), strength

    def options(self, warps: int) -> dict[str, Any]:
        return {"num_warps": warps, "maxnreg": self.tuned.registers, "enable_fp_fusion": True}

    def grid(self, tickets: int, per_processor: int) -> int:
        return min(tickets, self.processors * per_processor)

    @abstractmethod
    def types(self, layer: plan.Layer) -> tuple[torch.dtype, ...]:
        """What the kernel is compiled for."""

    @abstractmethod
    def arguments_to_compile_for(self) -> Iterator[tuple[Any, Group, tuple[Any, ...]]]:
        """Kernel, group and arguments of every launch."""

    def compile(self) -> None:
        """Compile and load every kernel that a step needs; launch nothing."""
        from . import rows as triton_rows

        with on_device(self.device):
            for kernel, group, arguments in self.arguments_to_compile_for():
                compiled = [kernel.warmup(*arguments, grid=(1,), **self.options(self.warps))]
                batch = (ABSENT,) * BATCH
                compiled.append(
                    triton_rows.point.warmup(group.pointers, 0, batch, BATCH, grid=(1,), **POINT)
                )
                for one in compiled:
                    getattr(one, "run", None)  # loads it onto the device


class Correcting(Work):
    """What Eq. 6-10 need of gradients, wherever the dots come from."""

    operands = 2

    def __init__(self, bucket: Bucket, operands: Sequence[Rows]) -> None:
        super().__init__(bucket, operands)
        rows, device = bucket.layout.rows, bucket.device
        self.warps = self.tuned.correct_warps
        self.scales = torch.empty(rows, 2, dtype=torch.float64, device=device)
        self.conflicts = torch.empty(rows, dtype=torch.int64, device=device)

    def types(self, layer: plan.Layer) -> tuple[torch.dtype, ...]:
        return layer.dtypes[:1]  # type: ignore[return-value]


class Correction(Correcting):
    """Eq. 6-10 from a given R."""

    sums = 3

    def __init__(self, bucket: Bucket, operands: Sequence[Rows]) -> None:
        super().__init__(bucket, operands)
        rows = bucket.layout.rows
        self.dots = torch.empty(rows, 3, dtype=torch.float64, device=bucket.device)

    def run(
        self,
        record: Record,
        reliability: Tensor,
        options: Options,
        two_launches: bool,
    ) -> None:
        from . import correct as triton_correct

        with on_device(self.device):
            for group in self.groups:
                for queue in self._queues(group, two_launches):
                    arguments = self._arguments(group, queue, record, reliability, options)
                    grid = self.grid(len(queue), self.tuned.correct_blocks)
                    triton_correct.correct[(grid,)](*arguments, **self.options(self.warps))

    def _queues(self, group: Group, two_launches: bool) -> list[Tensor]:
        if two_launches not in group.queues:
            blocks = self.processors * self.tuned.correct_blocks
            tables = plan.halves(group.cuts) if two_launches else (plan.queue(group.cuts, blocks),)
            group.queues[two_launches] = [group.upload(t) for t in tables]
        return group.queues[two_launches]

    def _arguments(
        self,
        group: Group,
        queue: Tensor,
        record: Record,
        reliability: Tensor,
        options: Options,
    ) -> tuple[Any, ...]:
        return (
            queue,
            len(queue),
            group.geometry,
            group.pointers,
            len(group.layers),
            group.counters,
            self.dots,
            group.parts,
            self.scales,
            self.conflicts,
            reliability,
            *how_to_correct(group, self.layout.rows, record, options),
        )

    def arguments_to_compile_for(self) -> Iterator[tuple[Any, Group, tuple[Any, ...]]]:
        from . import correct as triton_correct

        record, reliability = self.record(), self.new(torch.float32, 2, self.layout.rows)
        for group in self.groups:
            queue = torch.empty(1, 2, dtype=torch.int32, device=self.device)
            arguments = self._arguments(group, queue, record, reliability, Options())
            yield triton_correct.correct, group, arguments


class Observation(Work):
    """What Eq. 2 and 4 need of gradients, weights and history."""

    operands, sums = 6, 7

    def __init__(self, bucket: Bucket, operands: Sequence[Rows]) -> None:
        super().__init__(bucket, operands)
        self.warps = self.tuned.observe_warps
        self.none = torch.zeros(1, dtype=torch.float64, device=bucket.device)
        for group in self.groups:
            group.queues[()] = [group.upload(plan.sums(group.cuts))]

    def types(self, layer: plan.Layer) -> tuple[torch.dtype, ...]:
        gradient, _, *others = layer.dtypes
        assert gradient is not None
        weight = others[0] or others[1] or gradient
        return gradient, weight, others[2] or others[3] or torch.float32

    def run(self, sums: Sums, weight: Tensor | None) -> None:
        from . import observe as triton_observe

        with on_device(self.device):
            for group in self.groups:
                arguments = self._arguments(group, sums, weight)
                grid = self.grid(arguments[1], self.tuned.observe_blocks)
                triton_observe.observe[(grid,)](*arguments, **self.options(self.warps))

    def _arguments(self, group: Group, sums: Sums, weight: Tensor | None) -> tuple[Any, ...]:
        dot, deviation, observed, twin_dots = sums
        (queue,) = group.queues[()]
        return (
            queue,
            len(queue),
            group.geometry,
            group.pointers,
            len(group.layers),
            group.counters,
            group.parts,
            self.none if weight is None else weight,
            self.layout.rows,
            twin_dots,
            dot,
            deviation,
            observed.view(torch.int8),
            *triton_types(*self.types(group.layers[0])),
            group.walk,
            group.vector,
            group.tile // 2,  # six operands instead of two
        )

    def arguments_to_compile_for(self) -> Iterator[tuple[Any, Group, tuple[Any, ...]]]:
        from . import observe as triton_observe

        rows = self.layout.rows
        sums = (
            self.new(torch.float64, 2, rows),
            self.new(torch.float64, 2, rows),
            self.new(torch.bool, 2, rows),
            self.new(torch.float64, rows, 3),
        )
        for group in self.groups:
            yield triton_observe.observe, group, self._arguments(group, sums, None)


def how_to_correct(group: Group, rows: int, record: Record, options: Options) -> tuple[Any, ...]:
    """The last arguments of a kernel that corrects: options, record, and what it is made for."""
    cosine, gap, mask, strength = record
    dtype = group.layers[0].dtypes[0]
    assert dtype is not None
    return (
        rows,
        options.eps,
        int(options.identify == "dual"),
        int(options.resolve == "blend"),
        cosine,
        gap,
        mask.view(torch.int8),
        strength,
        *triton_types(dtype),
        torch.finfo(dtype).max,
        group.walk,
        group.vector,
        group.tile,
    )


def triton_types(*dtypes: torch.dtype) -> tuple[Any, ...]:
    """As Triton calls them."""
    import triton.language as tl

    names = {
        torch.float64: tl.float64,
        torch.float32: tl.float32,
        torch.bfloat16: tl.bfloat16,
        torch.float16: tl.float16,
    }
    return tuple(names[d] for d in dtypes)


def _capturing(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def _shapes(bucket: Bucket, operands: Sequence[Rows]) -> list[object]:
    """All that must not change while addresses do."""
    return [
        None if x is None else (x.dtype, x.shape, x.stride())
        for side in (*bucket.grads, *operands)
        for x in side
    ]


def on_device(device: torch.device) -> AbstractContextManager[Any]:
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def device_of(device: torch.device) -> tuple[Tuning, int]:
    """How to launch there, and the number of its multiprocessors."""
    if device.type != "cuda":  # the interpreter: one block after the other
        return Tuning(), 1
    processors = torch.cuda.get_device_properties(device).multi_processor_count
    return tuning(torch.cuda.get_device_capability(device)), processors
