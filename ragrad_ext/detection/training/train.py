"""One training run in a folder: begun, gone on with, or read when it is finished."""

from __future__ import annotations

from pathlib import Path

from ..report.report import Run
from ..settings import Settings
from .checkpoint import check_settings
from .loop import Trainer
from .meter import read_run, write_json, write_run

# Removed back to front: the mark of a finished run goes first.
FILES = ("settings.json", "checkpoint.pt", "log.csv", "layers.npz", "metrics.json")


def train(
    settings: Settings,
    folder: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> Run:
    """Trains one model in `folder`, evaluates it on the validation split, returns what happened.

    Leaves settings.json, checkpoint.pt and log.csv (after every epoch), layers.npz (RaGrad's
    statistics by layer and epoch) and metrics.json (AP of the last epoch: none is picked by its
    result). With `resume` a stopped run goes on where it was, a finished one is read, and an
    empty folder is a new run; on the CPU, with as many threads, the outcome is bit for bit that
    of a run never stopped. Ctrl-C finishes the step, saves, and raises Interrupted.

    Raises FileExistsError for a folder that holds a run (without `resume` or `overwrite`),
    ValueError for a run of other settings or another model, FloatingPointError for a loss that is
    not finite, naming epoch and step; the last epoch's checkpoint is kept.
    """
    folder = Path(folder)
    check_folder(folder, settings, resume=resume, overwrite=overwrite)
    if resume and (finished := read_run(folder)) is not None:
        return finished
    trainer = Trainer(settings, folder)
    if resume and (folder / "checkpoint.pt").is_file():
        trainer.load_()
    elif settings.init is not None:
        trainer.start_from_(Path(settings.init.format(seed=settings.seed)))
    folder.mkdir(parents=True, exist_ok=True)
    if overwrite:
        for name in reversed(FILES):
            (folder / name).unlink(missing_ok=True)
    write_json(folder / "settings.json", settings.to_dict())
    run = trainer.run(progress)
    write_run(folder, run)
    return run


def check_folder(folder: Path, settings: Settings, *, resume: bool, overwrite: bool) -> None:
    """Raises FileExistsError or ValueError where a run in `folder` stands in the way."""
    if resume and overwrite:
        raise ValueError("resume and overwrite exclude each other; choose one")
    if overwrite or not (folder / "settings.json").is_file():
        return
    if not resume:
        raise FileExistsError(
            f"{folder} already holds a run; use --resume to continue it, --overwrite to start "
            "anew, or another --out"
        )
    check_settings(Settings.load(folder / "settings.json"), settings, folder)
