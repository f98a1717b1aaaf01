"""The data of a run: what its settings say, opened."""

from __future__ import annotations

from typing import NamedTuple

from ..settings import Settings
from .datasets import PairedImages, open_data


class Splits(NamedTuple):
    """Both splits of a data set. Runs of one command share them, so files are read once."""

    train: PairedImages
    val: PairedImages


def open_splits(settings: Settings) -> Splits:
    """The training and the validation split of the run's data."""
    return Splits(open_split(settings, "train"), open_split(settings, "val"))


def open_split(settings: Settings, split: str | None) -> PairedImages:
    """The "train" or "val" split of the run's data, or all images of a folder (None).

    Of generated scenes, "val" has half as many as "train".
    """
    return open_data(
        settings.data,
        split,
        labels=settings.labels,
        n=settings.scenes if split == "train" else (settings.scenes + 1) // 2,
        size=(settings.width, settings.height),
    )
