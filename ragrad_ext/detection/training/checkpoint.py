"""Checkpoints: written whole, and checked before anything is loaded."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..files import write_whole
from ..settings import Settings

FORMAT = 1


def save_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Writes `state` (tensors, numbers, text and containers of them)."""
    write_whole(path, lambda file: torch.save({"format": FORMAT, **state}, file))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Reads what `save_checkpoint` wrote, onto the CPU, running no code from the file.

    Raises FileNotFoundError, and ValueError for a file of another kind or format.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}; `train` writes checkpoint.pt there")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(
            f"{path} is not a readable checkpoint ({str(error).split('. ')[0]}); delete it and "
            "train again, or name the checkpoint.pt that `train` wrote"
        ) from error
    found = state.get("format") if isinstance(state, dict) else None
    if found != FORMAT:
        raise ValueError(
            f"{path} is no checkpoint of this version: expected format {FORMAT}, found {found}; "
            "train again with this version"
        )
    return state


def check_settings(found: Settings, wanted: Settings, where: Path) -> None:
    """Raises ValueError naming every setting in which the run in `where` differs."""
    if different := wanted.differences(found):
        raise ValueError(
            f"{where} holds a run with other settings ({'; '.join(different)}); use those "
            "settings to continue it, or another --out, or --overwrite to start again"
        )


def check_classes(found: Sequence[str], wanted: Sequence[str], where: Path) -> None:
    """Raises ValueError if a model was trained for other classes than those of the data."""
    if tuple(found) != tuple(wanted):
        raise ValueError(
            f"{where} was trained for the classes {', '.join(found)}, the data has "
            f"{', '.join(wanted)}; use the data that it was trained on"
        )


def load_model_(model: nn.Module, state: Mapping[str, Tensor], where: Path) -> None:
    """Copies `state` into `model`.

    Raises ValueError if it does not fit, before anything is changed. (`load_state_dict` alone
    raises after it has copied what fits.)
    """
    mine = model.state_dict()
    unfit = [f"lacks {k}" for k in mine if k not in state]
    unfit += [f"has {k}, which the model lacks" for k in state if k not in mine]
    unfit += [
        f"{k} is {tuple(state[k].shape)} there, {tuple(v.shape)} here"
        for k, v in mine.items()
        if k in state and state[k].shape != v.shape
    ]
    if unfit:
        more = f" and {len(unfit) - 3} more" if len(unfit) > 3 else ""
        raise ValueError(
            f"{where} holds another model: it {'; '.join(unfit[:3])}{more}; build the model with "
            "the detector, backbone and classes that it was trained with"
        )
    model.load_state_dict(state)
