"""When an estimator measures, and with which draws."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import distributed as dist

from .processes import rank


@dataclass(frozen=True)
class Schedule:
    """When an estimator measures, how it averages, and which draws it uses.

    Estimators take these fields as keyword arguments, as in ``Hutchinson(every=20, spread=4)``.

    Args:
        every: steps between refreshes. The first step has one.
        average: beta of ``q <- beta q + (1 - beta) q_new``, in [0, 1). The start is corrected as
            Adam's moments are: q is a weighted mean of the refreshes so far, never drawn to 0.
            With 0, q is the latest refresh.
        spread: the parts of a refresh, 1 to ``every``. Pair l is in part ``l % spread``. The parts
            are measured at equal distances within ``every`` steps. All rows are first order until
            every part was measured once.
        seed: of random draws. torch's own random state is never touched.
        group: the processes that average gradients (DDP). Each measures on its own part of the
            batch with its own draws, and q is the mean. Several processes without a group are an
            error, because their replicas would drift apart.

    Raises:
        ValueError: a number out of its range.
    """

    every: int = 10
    average: float = 0.0
    spread: int = 1
    seed: int = 0
    group: dist.ProcessGroup | None = None

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"every={self.every}; pass 1 or more steps between refreshes")
        if not 0 <= self.average < 1:
            raise ValueError(f"average={self.average}; the share of the old q is in [0, 1)")
        if not 1 <= self.spread <= self.every:
            raise ValueError(
                f"spread={self.spread}; {self.every} steps hold 1 to {self.every} parts of a "
                "refresh; lower spread= or raise every="
            )

    def part(self, step: int) -> int | None:
        """The part of the pairs that is measured on this step; None if none is."""
        phase = step % self.every
        starts = [p * self.every // self.spread for p in range(self.spread)]
        return starts.index(phase) if phase in starts else None

    @property
    def own_seed(self) -> int:
        """The seed of this process's draws: n processes draw n times as many."""
        number = rank(self.group)
        return mixed(self.seed, number) if number else self.seed


def mixed(seed: int, index: int) -> int:
    """The seed of draw ``index``, 32 bits, because torch's CPU generator reads no more."""
    return int(np.random.SeedSequence((seed, index)).generate_state(1)[0])
