"""One training run in a folder: started, continued, or read if it is finished."""

from __future__ import annotations

from pathlib import Path

from ..data.splits import Splits, open_splits
from ..files import write_json
from ..runs import FILES, Run, read_run, write_run
from ..settings import Settings
from .checkpoint import check_settings
from .loop import Trainer
from .progress import Bar, Watch
from .stopping import Stop, stop_signal


def train(
    settings: Settings,
    folder: str | Path,
    *,
    data: Splits | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> Run:
    """Trains one model in `folder`, evaluates it on the validation split, and returns the run.

    Leaves settings.json, checkpoint.pt and log.csv (after every epoch), layers.npz (RaGrad's
    statistics by layer and epoch) and metrics.json (AP of the last epoch: none is picked by its
    result). With `resume` a stopped run continues where it was, a finished one is read, and an
    empty folder is a new run; on the CPU, with as many threads, the outcome is bit for bit that
    of a run never stopped. `data` is what `open_splits(settings)` gave; None opens it here. Ctrl-C
    finishes the step, saves, and raises Interrupted.

    Raises FileExistsError for a folder that holds a run (without `resume` or `overwrite`),
    ValueError for a run of other settings or another model, FloatingPointError for a loss that is
    not finite, naming epoch and step; the last epoch's checkpoint is kept.
    """
    folder = Path(folder)
    check_folder(folder, settings, resume=resume, overwrite=overwrite)
    if resume and (finished := read_run(folder)) is not None:
        return finished
    data = data or open_splits(settings)
    bar = Bar(settings, hidden=not progress)
    try:
        with stop_signal() as stop:
            return train_watched(
                settings, folder, data, resume=resume, overwrite=overwrite, watch=bar, stop=stop
            )
    finally:
        bar.close()


def train_watched(
    settings: Settings,
    folder: Path,
    data: Splits,
    *,
    resume: bool,
    overwrite: bool,
    watch: Watch,
    stop: Stop,
) -> Run:
    """`train` in a folder that was checked and holds no finished run.

    `watch` gets the progress of every step; `stop` is asked after each.
    """
    trainer = Trainer(settings, folder, data)
    if resume and (folder / "checkpoint.pt").is_file():
        trainer.load_()
    elif settings.init is not None:
        trainer.start_from_(Path(settings.init.format(seed=settings.seed)))
    folder.mkdir(parents=True, exist_ok=True)
    if overwrite:
        for name in reversed(FILES):
            (folder / name).unlink(missing_ok=True)
    write_json(folder / "settings.json", settings.to_dict())
    run = trainer.run(watch, stop)
    write_run(folder, run)
    return run


def check_folder(folder: Path, settings: Settings, *, resume: bool, overwrite: bool) -> None:
    """Raises FileExistsError or ValueError if `folder` holds a run that these options forbid."""
    if resume and overwrite:
        raise ValueError("resume and overwrite exclude each other; choose one")
    if overwrite or not (folder / "settings.json").is_file():
        return
    if not resume:
        raise FileExistsError(
            f"{folder} already holds a run; use --resume to continue it, --overwrite to start "
            "again, or another --out"
        )
    check_settings(Settings.load(folder / "settings.json"), settings, folder)
