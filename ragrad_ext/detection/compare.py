"""The same seeds with and without RaGrad, side by side; then results.json and the report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from .data.splits import open_splits
from .device import pick_device
from .files import write_json
from .jobs import Plan, sensible_jobs, train_in_turn, train_side_by_side, usable_cores
from .report.examples import make_examples
from .report.record import record
from .report.report import write_report
from .report.results import Results
from .report.summary import answer
from .runs import read_run
from .settings import Settings
from .training.train import check_folder


class Comparison(NamedTuple):
    """What a comparison leaves: the report's path, and its answer in one or two sentences."""

    report: Path
    answer: str


def compare(
    settings: Settings,
    folder: str | Path,
    *,
    methods: Sequence[str] = ("none", "ragrad"),
    seeds: Sequence[int] = (0, 1, 2),
    jobs: int | None = 1,
    threads: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    command: str = "",
    examples: int = 6,
    progress: bool = True,
) -> Comparison:
    """Trains every method with every seed; writes `results.json` and `report.html` in `folder`.

    `settings.method` and `settings.seed` are replaced. A run is in `folder/METHOD-seedN`; with
    `resume`, finished runs are read and stopped ones continue. The first method is the baseline
    of the others. `command` is put on record. `examples` validation images are drawn, with the
    models of the first seed.

    `jobs` runs train at a time, in processes of their own if it is above 1; None: as many as
    there are runs and CPU cores for them, 1 on a GPU. `threads` are CPU threads of each run; None:
    the cores divided by the jobs, or, in this process, torch's own number. The data is read once.

    Raises what `train` raises, with the name of the run, and ValueError for methods or seeds given
    twice or not at all; every run's folder is checked before the first run starts.
    """
    folder = Path(folder)
    plan = make_plan(settings, folder, methods, seeds)
    if jobs is not None and jobs < 1:
        raise ValueError(f"jobs must be 1 or more, got {jobs}")
    device = pick_device(settings.device)
    for where, one in plan.items():
        check_folder(where, one, resume=resume, overwrite=overwrite)
    data = open_splits(settings)
    done = {w: run for w in plan if resume and (run := read_run(w)) is not None}
    todo = {where: one for where, one in plan.items() if where not in done}
    if jobs is None:
        jobs = sensible_jobs(len(todo), device)
    if jobs == 1 or len(todo) <= 1:
        threads = torch.get_num_threads()
        done |= train_in_turn(todo, data, resume=resume, overwrite=overwrite, progress=progress)
    else:
        threads = threads or max(1, usable_cores() // jobs)
        done |= train_side_by_side(
            todo,
            data,
            jobs=jobs,
            threads=threads,
            resume=resume,
            overwrite=overwrite,
            progress=progress,
        )
    runs = [done[where] for where in plan]
    outcome = record(settings, runs, command, threads)
    write_json(folder / "results.json", outcome)
    models = {method: folder / f"{method}-seed{seeds[0]}" / "checkpoint.pt" for method in methods}
    kind = "generated scenes" if settings.data == "scenes" else Path(settings.data).name
    report = write_report(
        folder / "report.html",
        runs,
        make_examples(data.val, models, examples, device),
        title=f"Detection on {kind} with and without RaGrad",
        command=command,
        settings={**outcome["settings"], **outcome["versions"], **outcome["machine"]},
        classes=data.val.classes,
    )
    return Comparison(report, answer(Results(runs)))


def make_plan(
    settings: Settings, folder: Path, methods: Sequence[str], seeds: Sequence[int]
) -> Plan:
    """The runs of a comparison. Seed by seed: after an interruption, what is there is paired.

    Raises ValueError for methods or seeds given twice or not at all.
    """
    for name, values in (("methods", methods), ("seeds", seeds)):
        if not values or len(set(values)) != len(values):
            raise ValueError(f"{name} must be given, each once, got {list(values)}")
    return {
        folder / f"{method}-seed{seed}": settings.change(method=method, seed=seed)
        for seed in seeds
        for method in methods
    }
