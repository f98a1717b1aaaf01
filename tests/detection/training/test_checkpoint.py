"""Checkpoints are whole or refused, and a model that does not fit is left alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from ragrad_ext.detection.training.checkpoint import load_checkpoint, load_model_, save_checkpoint

from ...lib.runs import same


def test_a_model_that_does_not_fit_is_left_alone(tmp_path: Path) -> None:
    model, other = nn.Linear(2, 3), nn.Linear(2, 4)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"weight is \(4, 2\) there, \(3, 2\) here"):
        load_model_(model, other.state_dict(), tmp_path)
    strange = {"weight": torch.zeros(3, 2), "extra": torch.zeros(1)}
    with pytest.raises(ValueError, match=r"lacks bias; has extra, which the model lacks"):
        load_model_(model, strange, tmp_path)
    assert same(dict(model.state_dict()), before)


def test_a_checkpoint_is_whole_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        load_checkpoint(path)
    save_checkpoint(path, {"epoch": 3, "weights": torch.arange(3)})
    assert load_checkpoint(path)["epoch"] == 3
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="not a readable checkpoint"):
        load_checkpoint(path)
    torch.save({"model": {}}, path)
    with pytest.raises(ValueError, match="expected format 1, found None"):
        load_checkpoint(path)


def test_a_failed_write_keeps_the_former_file(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, {"epoch": 1})
    with pytest.raises(Exception, match="pickle"):
        save_checkpoint(path, {"epoch": 2, "unfit": lambda: None})
    assert load_checkpoint(path)["epoch"] == 1
