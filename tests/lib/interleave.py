"""Triton's interpreter with many blocks at a time: they take turns at every atomic operation.

The interpreter itself runs the blocks of a launch one after another, so that the first takes all
tickets and nobody ever waits. Here every block is a thread, of which one runs: whose turn is next
is drawn at random before and after every atomic operation of the one that runs.
"""

from __future__ import annotations

import functools
import inspect
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import copy_context
from typing import Any

import pytest

MANY_POLLS = 10_000  # in a row, of all blocks together: each of them waits


class Deadlock(Exception):
    """Every block that runs waits for another."""


class _Abandoned(BaseException):
    """Ends the threads of a launch that failed elsewhere."""


class Schedule:
    """Runs the blocks of launches interleaved.

    Args:
        resident: how many blocks run at a time; a further one starts when one of them has ended.
        seed: of the draws.
    """

    def __init__(self, resident: int, seed: int) -> None:
        self.resident, self.draw = resident, random.Random(seed)
        self.blocks: set[int] = set()  # that did anything between two atomic operations

    def run(self, blocks: list[Callable[[], None]], begin: Callable[[int], None]) -> None:
        """Call all of them; ``begin(n)`` whenever it is the turn of block n again."""
        self.begin, self.polls, self.fault = begin, 0, None
        self.turn = [threading.Semaphore(0) for _ in blocks]
        self.main = threading.Semaphore(0)
        self.waiting, self.running = list(range(len(blocks))), []
        self.speeds = [self.draw.choice((1, 1, 10, 100)) for _ in blocks]
        threads = [
            threading.Thread(target=copy_context().run, args=(self._block, n, block))
            for n, block in enumerate(blocks)
        ]
        for thread in threads:
            thread.start()
        self._pass_on()
        self.main.acquire()
        if self.fault is not None:
            for semaphore in self.turn:
                semaphore.release()
        for thread in threads:
            thread.join()
        if self.fault is not None:
            raise self.fault

    def pause(self, is_poll: bool) -> None:
        """Called by the block that runs, around an atomic operation."""
        self.blocks.add(self.current)
        self.polls = self.polls + 1 if is_poll else 0
        if self.polls > MANY_POLLS:
            self._give_up(Deadlock(f"blocks {self.running} wait for ever"))
        mine = self.current
        self._pass_on()
        self._wait(mine)

    def _give_up(self, fault: Exception) -> None:
        self.fault = fault
        self.main.release()
        raise _Abandoned

    def _block(self, n: int, work: Callable[[], None]) -> None:
        try:
            self._wait(n)
            work()
        except _Abandoned:
            return
        except Exception as fault:
            self.fault = fault
            self.main.release()
            return
        self.running.remove(n)
        self.polls = 0
        self._pass_on()

    def _pass_on(self) -> None:
        while self.waiting and len(self.running) < self.resident:
            self.running.append(self.waiting.pop(0))
        if not self.running:
            self.main.release()
            return
        speeds = [self.speeds[n] for n in self.running]
        self.current = self.draw.choices(self.running, speeds)[0]
        self.turn[self.current].release()

    def _wait(self, n: int) -> None:
        self.turn[n].acquire()
        if self.fault is not None:
            raise _Abandoned
        self.begin(n)


class _Together:
    """In place of a kernel: the interpreter calls it block by block; at the last one, all run."""

    def __init__(self, kernel: Any, builder: Any, schedule: Schedule) -> None:
        self.kernel, self.builder, self.schedule = kernel, builder, schedule
        functools.update_wrapper(self, kernel)
        self.__globals__, self.__signature__ = kernel.__globals__, inspect.signature(kernel)
        self.places: list[tuple[int, int, int]] = []

    def __call__(self, **args: Any) -> None:
        self.places.append(self.builder.grid_idx)
        if len(self.places) == self.builder.grid_dim[0]:
            blocks = [lambda: self.kernel(**args)] * len(self.places)
            self.schedule.run(blocks, lambda n: self.builder.set_grid_idx(*self.places[n]))


@contextmanager
def interleaved(schedule: Schedule) -> Iterator[None]:
    """Launches in the interpreter follow ``schedule``."""
    builder, interpreter = _hooks()
    atomic = builder.create_atomic_rmw

    class Executor(interpreter.GridExecutor):  # type: ignore[misc, name-defined]
        def __call__(self, *args: Any, **kwargs: Any) -> None:
            self.fn = _Together(self.fn, builder, schedule)
            super().__call__(*args, **kwargs)

    def in_turn(operation: Any, pointer: Any, value: Any, *rest: Any) -> Any:
        is_poll = not value.data.any()  # it adds nothing
        schedule.pause(is_poll)
        result = atomic(operation, pointer, value, *rest)
        schedule.pause(is_poll)  # before what the block does next
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builder, "create_atomic_rmw", in_turn)
        patch.setattr(interpreter, "GridExecutor", Executor)
        yield


def _hooks() -> tuple[Any, Any]:
    """What the interpreter runs an atomic operation with, and the module that it runs a launch in.

    These are no public names of Triton: a version without them is skipped.
    """
    import triton
    from triton.runtime import interpreter

    builder = getattr(interpreter, "interpreter_builder", None)
    needed = {builder: ("create_atomic_rmw", "set_grid_idx"), interpreter: ("GridExecutor",)}
    missing = [
        name for where, names in needed.items() for name in names if not hasattr(where, name)
    ]
    if missing:
        pytest.skip(f"triton {triton.__version__}: blocks cannot take turns without {missing[0]}")
    return builder, interpreter
