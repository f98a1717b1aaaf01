"""results.json: everything that a reader needs to judge the numbers, or to get them again."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
import torchvision

from ragrad_ext import __version__

from ..device import pick_device
from ..runs import Run
from ..settings import Settings
from .results import Results


def record(
    settings: Settings, runs: Sequence[Run], command: str = "", threads: int | None = None
) -> dict[str, Any]:
    """The runs, their summary and where they came from, ready for JSON.

    AP is in [0, 1]; `std` is the sample standard deviation over seeds. `differences` are paired
    by seed, against the first run's method, with the 95 % interval of their mean.
    """
    table = Results(runs)
    return {
        "command": command,
        "settings": {k: v for k, v in asdict(settings).items() if k not in ("method", "seed")},
        "versions": {
            "ragrad_ext": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
        },
        "machine": {
            "cpus": os.cpu_count(),
            "architecture": platform.machine(),
            "threads": threads or torch.get_num_threads(),  # of each run
            "device": pick_device(settings.device).type,
        },
        "runs": [
            {
                "method": run.method,
                "seed": run.seed,
                "seconds": sum(row["seconds"] for row in run.epochs),
                "loss": [row["loss"] for row in run.epochs],
                "conflicts": [row["conflicts"] for row in run.epochs if "conflicts" in row],
                "ap": run.ap,
            }
            for run in runs
        ],
        "summary": {m: _each(runs[0].ap, partial(_summary, table, m)) for m in table.runs},
        "differences": {
            f"{m} - {table.baseline}": _each(runs[0].ap, partial(_difference, table, m))
            for m in table.others
        },
    }


def _each(
    ap: Mapping[str, Mapping[str, float]], summarise: Callable[[str, str], dict[str, Any]]
) -> dict[str, Any]:
    """`summarise(condition, metric)` for each cell of an AP table."""
    return {c: {metric: summarise(c, metric) for metric in metrics} for c, metrics in ap.items()}


def _summary(table: Results, method: str, condition: str, metric: str) -> dict[str, Any]:
    return table.spread(method, condition, metric)._asdict()


def _difference(table: Results, method: str, condition: str, metric: str) -> dict[str, Any]:
    pairs = table.paired(method, condition, metric)
    return {
        "by_seed": dict(zip(pairs.seeds, pairs.differences, strict=True)),
        **pairs.spread._asdict(),
        "interval": pairs.interval,
    }
