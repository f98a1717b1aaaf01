"""The options of a run: what they refuse, and how they are compared and kept."""

from __future__ import annotations

import math
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from ragrad_ext.detection.files import write_json
from ragrad_ext.detection.models.backbones import BACKBONES
from ragrad_ext.detection.models.detectors import DETECTORS
from ragrad_ext.detection.settings import Settings

from ..lib.runs import TINY


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "pcgrad"}, r"method must be one of none, ragrad, got 'pcgrad'"),
        ({"detector": "yolo"}, r"detector must be one of fcos"),
        ({"epochs": 0}, r"epochs must be a whole number, 1 or more, got 0"),
        ({"batch_size": 2.0}, r"batch_size must be a whole number"),
        ({"seed": -1}, r"seed must be a whole number, 0 or more, got -1"),
        ({"lr": 0.0}, r"lr must be a finite number, above 0"),
        ({"lr": math.nan}, r"lr must be a finite number"),
        ({"clip": -1.0}, r"clip must be a finite number, 0 or more"),
        ({"alpha": 1.0}, r"alpha must be a finite number, 0 or more and below 1, got 1.0"),
        ({"detector": "fasterrcnn", "effectiveness": "hutchinson"}, "RoIAlign has no second"),
    ],
)
def test_settings_refuse_what_cannot_be(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Settings(**change)


def test_settings_name_their_differences_and_forgive_the_place() -> None:
    other = TINY.change(lr=0.5, device="cuda", workers=3)
    assert TINY.differences(other) == ["lr: 0.5 there, 0.002 here"]


def test_settings_survive_json_and_refuse_another_version(tmp_path: Path) -> None:
    write_json(tmp_path / "settings.json", TINY.to_dict())
    assert Settings.load(tmp_path / "settings.json") == TINY
    assert Settings.from_dict({"lr": 0.5}) == Settings(lr=0.5)
    with pytest.raises(ValueError, match="another version: colour is unknown here"):
        Settings.from_dict({**TINY.to_dict(), "colour": 1})


def test_every_detector_and_backbone_has_its_option() -> None:
    allowed = {f.name: f.metadata["allowed"] for f in fields(Settings)}
    assert set(allowed["detector"]) == set(DETECTORS)
    assert set(allowed["backbone"]) == set(BACKBONES)


def test_every_option_says_what_it_is() -> None:
    assert [f.name for f in fields(Settings) if not f.metadata["help"]] == []
