"""Times of calls, and beside each the bandwidth that the device had just before it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median, quantiles
from typing import NamedTuple

import torch

Work = Callable[[], object]


class Contender(NamedTuple):
    """A call, and what undoes it."""

    work: Work
    restore_: Work


@dataclass
class Samples:
    """Seconds of each call, and bytes per second of each reader before it, call by call."""

    seconds: list[float] = field(default_factory=list)
    readers: dict[str, list[float]] = field(default_factory=dict)

    @property
    def median(self) -> float:
        return median(self.seconds)

    @property
    def quartiles(self) -> list[float]:
        """The first and the third."""
        if len(self.seconds) == 1:
            return self.seconds * 2
        first, _, third = quantiles(self.seconds, n=4, method="inclusive")
        return [first, third]

    @property
    def bandwidth(self) -> float:
        """Bytes per second of the reader with the best median."""
        return max(median(x) for x in self.readers.values())


class Baseline:
    """What the device's memory gives to plain operators, over buffers far larger than any cache.

    On a CPU the best of several readers, on the thread count of the process; on a GPU a copy, bytes
    read and written. Sampled right before every timed call: bandwidth drifts with what else the
    machine does, and a call then finds in the caches what was read last, and no gradients.
    """

    def __init__(self, device: torch.device) -> None:
        # A GPU must be busy with it for longer than the host needs to launch what comes next.
        n = 2**26 if device.type == "cpu" else 2**28
        a, b = (torch.ones(n, device=device) for _ in range(2))
        self.readers: dict[str, tuple[int, Work]]
        if device.type == "cpu":
            self.readers = {
                "sum": (4 * n, lambda: a.sum()),
                "dot": (8 * n, lambda: torch.dot(a, b)),
            }
        else:
            self.readers = {"copy": (8 * n, lambda: a.copy_(b))}


def durations(works: Sequence[Work], device: torch.device) -> list[float]:
    """Seconds of works run back to back; on a GPU between events, without waiting in between."""
    if device.type == "cpu":
        marks = [time.perf_counter()]
        for work in works:
            work()
            marks.append(time.perf_counter())
        return [b - a for a, b in pairwise(marks)]
    events = [torch.cuda.Event(enable_timing=True) for _ in range(len(works) + 1)]
    events[0].record()
    for work, event in zip(works, events[1:], strict=True):
        work()
        event.record()
    torch.cuda.synchronize()
    return [a.elapsed_time(b) / 1e3 for a, b in pairwise(events)]


def in_turn(
    contenders: Mapping[str, Contender],
    rehearsals: Mapping[str, Work],
    baseline: Baseline,
    device: torch.device,
    most: int,
    budget: float,
) -> dict[str, Samples]:
    """Time all in turn, each ``most`` times or for about ``budget`` seconds, but 3 times.

    Outside its time, each call is preceded by ``restore_``, by the baseline's readers, which also
    evict the rows just restored, and by its rehearsal, if there is one: the same code on next to
    no data. The readers evict code too, which is what a call on few weights would then wait for.
    (On a GPU the readers still run while the host works on what comes next.)
    """
    for name, contender in contenders.items():  # compiles, allocates
        contender.restore_()
        contender.work()
        rehearsals.get(name, _nothing)()
    samples = {name: Samples() for name in contenders}
    readers = baseline.readers
    for turn in range(most):
        for name, contender in contenders.items():
            mine = samples[name]
            if turn >= 3 and sum(mine.seconds) > budget:
                continue
            contender.restore_()
            before = [*(read for _, read in readers.values()), rehearsals.get(name, _nothing)]
            *reading, _, seconds = durations([*before, contender.work], device)
            mine.seconds.append(seconds)
            for (reader, (size, _)), t in zip(readers.items(), reading, strict=True):
                mine.readers.setdefault(reader, []).append(size / t)
    return samples


def _nothing() -> None:
    """The rehearsal of a contender that has none."""


def host_seconds(
    contender: Contender,
    device: torch.device,
    most: int,
    budget: float,
    *,
    to_the_end: bool = False,
) -> float:
    """Median wall time until a call returns; on a GPU its work may then still be going on,
    unless it is waited for ``to_the_end``."""
    seconds: list[float] = []
    while len(seconds) < 3 or (len(seconds) < most and sum(seconds) < budget):
        contender.restore_()
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        contender.work()
        if to_the_end and device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return median(seconds)


class _Undo:
    """Takes the place of a tensor whose ``grad`` do_bench sets to None before every call."""

    def __init__(self, contender: Contender) -> None:
        self._contender = contender

    def __setattr__(self, name: str, value: object) -> None:
        if name == "grad":
            self._contender.restore_()
        else:
            super().__setattr__(name, value)


def kernel_seconds(contender: Contender, captured: bool) -> float:
    """Median device time by ``triton.testing.do_bench``: L2 is emptied before each call.

    Args:
        captured: time the replay of a CUDA graph of the call, so that kernels too short to hide
            the host's part of the call are not charged for it.
    """
    from triton import testing

    work = contender.work
    if captured:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            work()
        work = graph.replay
    undo = [_Undo(contender)]
    return float(testing.do_bench(work, grad_to_none=undo, return_mode="median")) / 1e3
