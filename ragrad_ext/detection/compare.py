"""The same seeds with and without RaGrad, one after the other; then results.json and report."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torchvision

from ..version import __version__
from .report.data import Results
from .report.examples import make_pictures
from .report.report import Run, write_report
from .settings import Settings
from .training.meter import write_json
from .training.model import open_split, pick_device
from .training.train import check_folder, train


def compare(
    settings: Settings,
    folder: str | Path,
    *,
    methods: Sequence[str] = ("none", "ragrad"),
    seeds: Sequence[int] = (0, 1, 2),
    resume: bool = False,
    overwrite: bool = False,
    command: str = "",
    pictures: int = 6,
    progress: bool = True,
) -> Path:
    """Trains every method with every seed and writes what came out; returns the report's path.

    `settings.method` and `settings.seed` are replaced. A run lies in `folder/METHOD-seedN`; with
    `resume`, finished ones are read and a stopped one goes on. The first method is what the others
    are measured against. `command` is put on record, `pictures` validation images are drawn with
    the models of the first seed.

    Raises what `train` raises, and ValueError for methods or seeds given twice or not at all;
    every run's folder is checked before the first one starts.
    """
    folder = Path(folder)
    for name, values in (("methods", methods), ("seeds", seeds)):
        if not values or len(set(values)) != len(values):
            raise ValueError(f"{name} must be given, each once, got {list(values)}")
    plan = {
        folder / f"{method}-seed{seed}": settings.change(method=method, seed=seed)
        for seed in seeds  # seed by seed: what is there after an interruption is paired
        for method in methods
    }
    for where, one in plan.items():
        check_folder(where, one, resume=resume, overwrite=overwrite)
    runs = [
        train(one, where, resume=resume, overwrite=overwrite, progress=progress)
        for where, one in plan.items()
    ]
    outcome = results(settings, runs, command)
    write_json(folder / "results.json", outcome)
    models = {method: folder / f"{method}-seed{seeds[0]}" / "checkpoint.pt" for method in methods}
    val = open_split(settings, "val")
    return write_report(
        folder / "report.html",
        runs,
        make_pictures(settings, val, models, pictures),
        title=f"Detection on {Path(settings.data).name} with and without RaGrad",
        command=command,
        settings={**outcome["settings"], **outcome["versions"], **outcome["machine"]},
        classes=val.classes,
    )


def results(settings: Settings, runs: Sequence[Run], command: str) -> dict[str, Any]:
    """Everything a reader needs to judge the numbers or to get them again, ready for JSON.

    AP lies in [0, 1]; `std` is the sample standard deviation over seeds. `differences` are paired
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
            "threads": torch.get_num_threads(),
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
