"""Ctrl-C as a request: the step is finished and the run is saved before it stops."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Protocol


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, after everything was saved; the text says where it stopped and how to continue."""


class Stop(Protocol):
    """An event of threads or of processes: once set, a run stops after its step."""

    def set(self) -> None: ...

    def is_set(self) -> bool: ...


@contextmanager
def stop_signal(stop: Stop | None = None) -> Iterator[Stop]:
    """Inside, the first Ctrl-C only sets `stop` (a new event if None); the second stops at once.

    Only the main thread may catch signals. A process that was started with Ctrl-C ignored
    (`nohup`, a shell's `&`) keeps ignoring it.
    """
    asked: Stop = threading.Event() if stop is None else stop
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield asked
        return

    def ask(number: int, frame: FrameType | None) -> None:
        asked.set()
        signal.signal(signal.SIGINT, before)
        print("\nstopping at the next step; Ctrl-C again stops at once", file=sys.stderr)

    signal.signal(signal.SIGINT, ask)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def interrupts_held() -> Iterator[None]:
    """Inside, Ctrl-C waits for the end of the block; processes started inside never see it.

    (Processes inherit the mask of signals. Windows has none: there nothing is held.)
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
