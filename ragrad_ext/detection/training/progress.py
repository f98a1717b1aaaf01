"""How far a run is, and the bar that shows it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import NamedTuple

from tqdm import tqdm

from ..settings import Settings


class Progress(NamedTuple):
    """Steps done of all steps, the epoch under way (from 1), and the latest means in words."""

    step: int
    steps: int
    epoch: int
    shown: Mapping[str, str]


Watch = Callable[[Progress], object]


class Bar:
    """A progress bar for the run of `settings`, drawn when the first `Progress` arrives.

    At a terminal it moves, in line `position` of several; in a file it adds a line now and then.
    """

    def __init__(self, settings: Settings, *, position: int = 0, hidden: bool = False) -> None:
        self.settings, self.position, self.hidden = settings, position, hidden
        self.bar: tqdm | None = None

    def __call__(self, progress: Progress) -> None:
        s, live = self.settings, sys.stderr.isatty()
        if self.bar is None:
            self.bar = tqdm(
                total=progress.steps,
                initial=progress.step - 1,
                disable=self.hidden,
                unit="step",
                dynamic_ncols=True,
                position=self.position if live else 0,
                leave=True,
                mininterval=0.1 if live else 30.0,
            )
        name = f"{s.method} seed {s.seed} epoch {progress.epoch}/{s.epochs}"
        self.bar.set_description(name, refresh=False)
        self.bar.set_postfix(progress.shown, refresh=False)
        self.bar.update(progress.step - self.bar.n)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
