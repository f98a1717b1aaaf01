"""What a training run is, and the files that it leaves in its folder."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from .files import write_json, write_whole

Row = dict[str, float]  # one epoch of the log

# `metrics.json` marks a finished run. An overwritten run is removed from the last file to the
# first, so the mark goes first.
FILES = ("settings.json", "checkpoint.pt", "log.csv", "layers.npz", "metrics.json")
_ARRAYS = ("epochs", "conflicts", "rgb", "ir")


@dataclass(frozen=True)
class LayerHistory:
    """RaGrad's statistics by layer: epochs (T,); conflicts, rgb and ir (T, L), a column per name.

    `conflicts` is the fraction of a layer's channels in conflict (Eq. 6), `rgb` and `ir` the mean
    reliability of its channels (Eq. 5). Raises ValueError where the shapes disagree.
    """

    names: Sequence[str]
    epochs: npt.NDArray[Any]
    conflicts: npt.NDArray[Any]
    rgb: npt.NDArray[Any]
    ir: npt.NDArray[Any]

    def __post_init__(self) -> None:
        expected = (len(self.epochs), len(self.names))
        for name in ("conflicts", "rgb", "ir"):
            if (shape := np.shape(getattr(self, name))) != expected:
                raise ValueError(
                    f"LayerHistory.{name} has shape {shape}, but {expected[0]} epochs and "
                    f"{expected[1]} names need {expected}; pass one row per epoch and one "
                    "column per layer"
                )


@dataclass(frozen=True)
class Run:
    """One training run.

    `ap`: condition -> metric -> value in [0, 1] (nan: not defined), "overall" for all images.
    `epochs`: one dict per epoch with epoch and loss, and with seconds, conflicts (a fraction), AP,
    AP50 and AP75 where they were measured. `layers` is None without RaGrad.
    """

    method: str
    seed: int
    ap: Mapping[str, Mapping[str, float]]
    epochs: Sequence[Mapping[str, float]] = ()
    layers: LayerHistory | None = None


def write_log(folder: Path, history: Sequence[Row]) -> None:
    """`log.csv`, one row per epoch. All of it is written each time: it never leads the checkpoint.

    Raises OSError if the file cannot be written.
    """
    columns = ["epoch", "loss", "lr", "seconds", "conflicts", "AP", "AP50", "AP75"]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    write_whole(folder / "log.csv", lambda file: file.write(text.getvalue().encode()))


def write_run(folder: Path, run: Run) -> None:
    """`layers.npz` (with RaGrad) and then `metrics.json`, the mark of a finished run."""
    layers = run.layers
    if layers is not None:

        def write(file: IO[bytes]) -> None:
            arrays = {name: getattr(layers, name) for name in _ARRAYS}
            np.savez_compressed(file, names=np.array(layers.names), **arrays)

        write_whole(folder / "layers.npz", write)
    write_json(
        folder / "metrics.json",
        {"method": run.method, "seed": run.seed, "ap": run.ap, "epochs": run.epochs},
    )


def read_run(folder: Path) -> Run | None:
    """The finished run in `folder`; None if there is none."""
    if not (folder / "metrics.json").is_file():
        return None
    saved = json.loads((folder / "metrics.json").read_text())
    layers = None
    if (folder / "layers.npz").is_file():
        with np.load(folder / "layers.npz") as arrays:
            names = [str(name) for name in arrays["names"]]
            layers = LayerHistory(names=names, **{name: arrays[name] for name in _ARRAYS})
    return Run(
        method=saved["method"],
        seed=saved["seed"],
        ap={condition: _numbers(values) for condition, values in saved["ap"].items()},
        epochs=[_numbers(row) for row in saved["epochs"]],
        layers=layers,
    )


def _numbers(values: Mapping[str, float | None]) -> dict[str, float]:
    """`values` with nan where JSON has null."""
    return {name: math.nan if value is None else value for name, value in values.items()}
