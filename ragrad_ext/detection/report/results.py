"""What a report is made from: runs, laid out by method and seed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..runs import Run
from .charts import Array, Curve, Style, styles
from .statistics import Paired, Spread, paired, spread

METRICS = ("AP", "AP50", "AP75")


class LayerMeans(NamedTuple):
    """Over seeds: conflicts (T, L), the mean, and for each seed R (n, L) of the last `tail` epochs.

    Epochs (T,) are those that every seed has.
    """

    names: list[str]
    epochs: Array
    conflicts: Array
    rgb: Array
    ir: Array
    tail: int


class Results:
    """The runs by method and seed; the first method is the baseline.

    Raises ValueError for what `write_report` says.
    """

    def __init__(self, runs: Sequence[Run]) -> None:
        if not runs:
            raise ValueError("a report needs at least one run, found none; train one first")
        self.runs: dict[str, dict[int, Run]] = {}
        for run in runs:
            seeds = self.runs.setdefault(run.method, {})
            if run.seed in seeds:
                raise ValueError(
                    f"two runs of method {run.method!r} with seed {run.seed}; pass each once, or "
                    "the spread over seeds would be too small"
                )
            seeds[run.seed] = run
        for method, seeds in self.runs.items():
            named = [list(run.layers.names) for run in seeds.values() if run.layers is not None]
            if any(names != named[0] for names in named):
                raise ValueError(
                    f"the runs of method {method!r} name different layers (layers by run: "
                    f"{[len(names) for names in named]}); compare runs of one model"
                )
        self.look = styles(self.runs)
        self.baseline, *self.others = self.runs
        self.seeds = sorted({run.seed for run in runs})
        present = dict.fromkeys(condition for run in runs for condition in run.ap)
        conditions = [condition for condition in present if condition != "overall"]
        # A single condition is all images: the same numbers as overall.
        self.conditions = conditions if len(conditions) > 1 else []

    def label(self, method: str) -> str:
        return self.look[method].label

    def values(
        self, method: str, condition: str = "overall", metric: str = "AP"
    ) -> dict[int, float]:
        """By seed; nan where it was not measured."""
        return {
            seed: run.ap.get(condition, {}).get(metric, math.nan)
            for seed, run in self.runs[method].items()
        }

    def spread(self, method: str, condition: str = "overall", metric: str = "AP") -> Spread:
        return spread(self.values(method, condition, metric).values())

    def paired(self, method: str, condition: str = "overall", metric: str = "AP") -> Paired:
        values = self.values(method, condition, metric)
        return paired(values, self.values(self.baseline, condition, metric))

    def curves(self, key: str) -> list[tuple[Style, list[Curve]]]:
        """Per method that has any: a curve for each seed, over the epochs with a finite `key`."""
        found = []
        for method, runs in self.runs.items():
            rows = [
                [(e["epoch"], e[key]) for e in run.epochs if math.isfinite(e.get(key, math.nan))]
                for run in runs.values()
            ]
            tables = [np.array(row, dtype=float) for row in rows if row]
            if tables:
                found.append((self.look[method], [(t[:, 0], t[:, 1]) for t in tables]))
        return found

    def layers(self, method: str) -> LayerMeans | None:
        """The method's statistics by layer, over seeds; None where there are none."""
        kept = [run.layers for run in self.runs[method].values() if run.layers is not None]
        if not kept or not kept[0].names:
            return None
        epochs = sorted(set.intersection(*(set(np.asarray(h.epochs).tolist()) for h in kept)))
        if not epochs:
            return None
        conflicts, rgb, ir = (
            np.stack([np.asarray(getattr(h, name))[np.isin(h.epochs, epochs)] for h in kept])
            for name in ("conflicts", "rgb", "ir")
        )
        tail = max(1, len(epochs) // 10)
        return LayerMeans(
            names=_short(kept[0].names),
            epochs=np.array(epochs, dtype=float),
            conflicts=conflicts.mean(0),
            rgb=rgb[:, -tail:].mean(1),
            ir=ir[:, -tail:].mean(1),
            tail=tail,
        )


def _short(names: Sequence[str]) -> list[str]:
    """Names without the dotted parts that all of them begin or end with."""
    parts = [name.split(".") for name in names]
    while len(parts) > 1 and min(map(len, parts)) > 1 and len({p[0] for p in parts}) == 1:
        parts = [p[1:] for p in parts]
    while len(parts) > 1 and min(map(len, parts)) > 1 and len({p[-1] for p in parts}) == 1:
        parts = [p[:-1] for p in parts]
    return [".".join(p) for p in parts]
