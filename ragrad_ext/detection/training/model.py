"""The model of a run: with fresh weights, or with those of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..models.two_stream import build
from ..seeds import INIT, derive_seed, own_randomness, seed_
from ..settings import Settings
from .checkpoint import check_classes, load_model_


def make_model(settings: Settings, classes: int) -> nn.Module:
    """The detector with the initial weights of `settings.seed`, on the CPU."""
    cpu = torch.device("cpu")  # drawn there on every machine, so they are the same on all
    with own_randomness(cpu):
        seed_(derive_seed(settings.seed, INIT), cpu)
        return build(settings.detector, settings.backbone, classes)


def trained_model(state: Mapping[str, Any], classes: Sequence[str], where: Path) -> nn.Module:
    """The model of a checkpoint that `load_checkpoint` read from `where`, on the CPU.

    Raises ValueError if it was trained for other `classes`, or holds other weights.
    """
    check_classes(state["classes"], classes, where)
    model = make_model(Settings.from_dict(state["settings"]), len(classes))
    load_model_(model, state["model"], where)
    return model
