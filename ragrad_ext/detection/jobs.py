"""Several runs side by side, each in a process of its own, with a progress bar each."""

from __future__ import annotations

import os
import signal
import traceback
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from multiprocessing import connection
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnContext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import multiprocessing

from .data.splits import Splits
from .runs import Run
from .settings import Settings
from .training.progress import Bar, Progress
from .training.stopping import Interrupted, Stop, interrupts_held, stop_signal
from .training.train import train, train_watched

# Mistakes of the user and of the data: told in one line. Anything else keeps its traceback.
KINDS = (FloatingPointError, OSError, ValueError)

Plan = Mapping[Path, Settings]  # folder -> settings, in the order in which runs start


def usable_cores() -> int:
    """CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def sensible_jobs(runs: int, device: torch.device) -> int:
    """As many runs at a time as there are cores; one on a GPU, which one run can fill."""
    return min(runs, usable_cores()) if device.type == "cpu" else 1


class Failure(NamedTuple):
    """Why a run ended without a result; `kind` is the class of the error to raise."""

    kind: type[Exception]
    text: str


class _Stopped(NamedTuple):
    """A run was saved in mid-training, because it was asked to stop."""


def train_in_turn(
    plan: Plan,
    data: Splits,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> dict[Path, Run]:
    """Trains every run of `plan` in its folder, one after the other in this process.

    Raises what `train` raises, with the name of the run.
    """
    done: dict[Path, Run] = {}
    for where, settings in plan.items():
        try:
            done[where] = train(
                settings, where, data=data, resume=resume, overwrite=overwrite, progress=progress
            )
        except KINDS as error:
            raise _named(where, _failure(error)) from error
    return done


def train_side_by_side(
    plan: Plan,
    data: Splits,
    *,
    jobs: int,
    threads: int,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> dict[Path, Run]:
    """Trains every run of `plan` in its folder, `jobs` at a time with `threads` CPU threads each.

    The folders were checked and hold no finished run (`train`). Results are bit for bit those of
    `train_in_turn` with as many threads. Decoded images are in memory once, shared by all.
    Processes are spawned: a script that calls this needs `if __name__ == "__main__":`.

    Ctrl-C saves every run and raises Interrupted; a second one stops at once. After an error in
    one run the others are saved and stop too. It is raised with the name of the run:
    FloatingPointError, OSError or ValueError as in `train`, else RuntimeError with the traceback.
    """
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    data.train.share_memory_()
    data.val.share_memory_()
    bars = {
        where: Bar(settings, position=i, hidden=not progress)
        for i, (where, settings) in enumerate(plan.items())
    }
    workers: list[_Worker] = []
    try:
        with interrupts_held():
            for _ in range(min(jobs, len(plan))):
                workers.append(_Worker(context, (data, threads, stop, resume, overwrite)))
        with stop_signal(stop):
            done, failures = _collect(plan, workers, bars, stop)
    finally:
        for bar in bars.values():
            bar.close()
        for worker in workers:
            worker.end()
    for where, failure in failures.items():
        raise _named(where, failure)
    if len(done) < len(plan):
        raise Interrupted(
            f"stopped with {len(done)} of {len(plan)} runs finished, the others saved; the same "
            "command with --resume continues from there"
        )
    return {where: done[where] for where in plan}


class _Worker:
    """A process that trains one run after the other, and the pipe to it."""

    def __init__(self, context: SpawnContext, arguments: tuple[Any, ...]) -> None:
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, *arguments))
        self.process.start()
        theirs.close()
        self.run: Path | None = None  # the folder of the run under way

    def begin(self, where: Path, settings: Settings) -> None:
        self.run = where
        with suppress(OSError):  # the process is gone: `read` says so
            self.pipe.send((where, settings))

    def read(self) -> Progress | Run | Failure | _Stopped:
        """The next message. A process that is gone, killed by the system perhaps, is a failure."""
        try:
            return self.pipe.recv()
        except (EOFError, OSError):
            self.process.join()
            return Failure(
                RuntimeError,
                f"its process ended with exit code {self.process.exitcode} (a negative one is a "
                "signal: -9 often means that memory ran out); use fewer --jobs",
            )

    def end(self) -> None:
        if self.run is not None:  # only after a second Ctrl-C
            self.process.terminate()
        self.pipe.close()
        self.process.join()


def _collect(
    plan: Plan, workers: list[_Worker], bars: Mapping[Path, Bar], stop: Stop
) -> tuple[dict[Path, Run], dict[Path, Failure]]:
    """Hands out the runs and reads what comes back, until no worker is busy."""
    waiting = deque(plan.items())
    done: dict[Path, Run] = {}
    failures: dict[Path, Failure] = {}

    def next_run(worker: _Worker) -> None:
        worker.run = None
        if waiting and not stop.is_set():
            worker.begin(*waiting.popleft())

    for worker in workers:
        next_run(worker)
    while busy := {w.pipe: (w, w.run) for w in workers if w.run is not None}:
        ready = connection.wait(list(busy))
        for worker, where in (busy[pipe] for pipe in busy if pipe in ready):
            message = worker.read()
            if isinstance(message, Progress):
                bars[where](message)
                continue
            if isinstance(message, Run):
                done[where] = message
            elif isinstance(message, Failure):
                failures[where] = message
                stop.set()
            next_run(worker)
    return done, failures


def _work(
    pipe: Connection, data: Splits, threads: int, stop: Stop, resume: bool, overwrite: bool
) -> None:
    """The life of a worker process: runs come through `pipe`, messages go back."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent process decides about Ctrl-C
    torch.set_num_threads(threads)
    with suppress(EOFError, BrokenPipeError):  # the parent process has closed its end
        while True:
            where, settings = pipe.recv()
            try:
                run = train_watched(
                    settings,
                    where,
                    data,
                    resume=resume,
                    overwrite=overwrite,
                    watch=pipe.send,
                    stop=stop,
                )
            except Interrupted:
                pipe.send(_Stopped())
            except BrokenPipeError:
                raise
            except Exception as error:
                pipe.send(_failure(error))
            else:
                pipe.send(run)


def _failure(error: Exception) -> Failure:
    for kind in KINDS:
        if isinstance(error, kind):
            return Failure(kind, str(error))
    return Failure(RuntimeError, traceback.format_exc())


def _named(where: Path, failure: Failure) -> Exception:
    """The error to raise for a run that failed."""
    return failure.kind(
        f"run {where.name}: {failure.text}\nthe other runs in {where.parent} are kept; the same "
        "command with --resume continues with them"
    )
