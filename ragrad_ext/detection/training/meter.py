"""What a run remembers of its epochs, and the files it leaves for people to read."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from ...training import RaGrad
from ..report.report import LayerHistory, Run
from .checkpoint import write_whole

Row = dict[str, float]


@dataclass
class Meter:
    """Sums over the steps of one epoch; part of a checkpoint taken in mid-epoch.

    loss: summed over `steps`; conflicts: the fraction of conflict rows, summed over `reads`;
    layers: (3, L) float64 sums over `reads` of each layer's conflict fraction and mean
    reliability of rgb and ir; None without RaGrad.
    """

    loss: float = 0.0
    steps: int = 0
    seconds: float = 0.0
    conflicts: float = 0.0
    reads: int = 0
    layers: Tensor | None = None

    def read(self, ragrad: RaGrad) -> None:
        """Adds the latest correction. Waits for the device."""
        fraction, layers = layer_statistics(ragrad)
        self.conflicts += fraction
        self.layers = layers if self.layers is None else self.layers + layers
        self.reads += 1

    def row(self, epoch: int, lr: float) -> Row:
        """The epoch's line of the log; `conflicts` only where RaGrad was at work."""
        row = {"epoch": epoch, "loss": self.loss / self.steps, "lr": lr, "seconds": self.seconds}
        return row | ({"conflicts": self.conflicts / self.reads} if self.reads else {})

    def layer_means(self) -> Tensor | None:
        return None if self.layers is None else self.layers / self.reads

    def shown(self) -> dict[str, str]:
        """The epoch's means so far, for a progress bar."""
        shown = {"loss": f"{self.loss / self.steps:.3f}"} if self.steps else {}
        return shown | ({"conflicts": f"{self.conflicts / self.reads:.1%}"} if self.reads else {})

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def layer_statistics(ragrad: RaGrad) -> tuple[float, Tensor]:
    """The latest step's conflict fraction, and by layer (3, L): conflict fraction, R rgb, R ir."""
    last, reliability = ragrad.last, ragrad.repa.reliability
    if last is None or reliability is None:
        raise RuntimeError("RaGrad has corrected nothing yet; call correct_() first")
    rows = torch.stack([last.mask.double(), reliability.rgb.double(), reliability.ir.double()])
    rows = rows.cpu()
    sizes = torch.tensor(last.offsets).diff()
    layer_of_row = torch.arange(len(sizes)).repeat_interleave(sizes)
    sums = torch.zeros(3, len(sizes), dtype=torch.float64).index_add_(1, layer_of_row, rows)
    return float(rows[0].mean()), sums / sizes.clamp(min=1)


def write_log(folder: Path, history: Sequence[Row]) -> None:
    """`log.csv`, one row per epoch, written anew from `history`: never ahead of the checkpoint."""
    columns = ["epoch", "loss", "lr", "seconds", "conflicts", "AP", "AP50", "AP75"]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    write_whole(folder / "log.csv", lambda file: file.write(text.getvalue().encode()))


def write_json(path: Path, content: Any) -> None:
    """Numbers that are not finite become null, which JSON knows."""
    text = json.dumps(_finite(content), indent=1, allow_nan=False) + "\n"
    write_whole(path, lambda file: file.write(text.encode()))


def _finite(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def write_run(folder: Path, run: Run) -> None:
    """`metrics.json` and, with RaGrad, `layers.npz`: the marks of a finished run."""
    layers = run.layers
    if layers is not None:

        def write(file: IO[bytes]) -> None:
            arrays = {k: getattr(layers, k) for k in ("epochs", "conflicts", "rgb", "ir")}
            np.savez_compressed(file, names=np.array(layers.names), **arrays)

        write_whole(folder / "layers.npz", write)
    write_json(
        folder / "metrics.json",
        {"method": run.method, "seed": run.seed, "ap": run.ap, "epochs": run.epochs},
    )


def read_run(folder: Path) -> Run | None:
    """The finished run in `folder`, or None while it is not finished."""
    if not (folder / "metrics.json").is_file():
        return None
    saved = json.loads((folder / "metrics.json").read_text())
    ap = {
        condition: {k: math.nan if v is None else v for k, v in values.items()}
        for condition, values in saved["ap"].items()
    }
    layers = None
    if (folder / "layers.npz").is_file():
        with np.load(folder / "layers.npz") as arrays:
            names = [str(name) for name in arrays["names"]]
            rest = {k: arrays[k] for k in ("epochs", "conflicts", "rgb", "ir")}
        layers = LayerHistory(names=names, **rest)
    epochs = [{k: math.nan if v is None else v for k, v in r.items()} for r in saved["epochs"]]
    return Run(method=saved["method"], seed=saved["seed"], ap=ap, epochs=epochs, layers=layers)
