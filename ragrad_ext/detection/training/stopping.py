"""Ctrl-C as a request instead of an explosion."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, after everything was saved; the text says where it stopped and how to go on."""


@contextmanager
def stop_signal() -> Iterator[threading.Event]:
    """Inside, the first Ctrl-C only sets the event; a second one stops at once.

    Only the main thread may catch signals, and a process started with Ctrl-C ignored (`nohup`,
    a shell's `&`) keeps ignoring it.
    """
    stop = threading.Event()
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield stop
        return

    def ask(number: int, frame: FrameType | None) -> None:
        stop.set()
        signal.signal(signal.SIGINT, before)
        print("\nstopping at the next step; Ctrl-C again stops at once", file=sys.stderr)

    signal.signal(signal.SIGINT, ask)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)
