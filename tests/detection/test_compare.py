"""The comparison: what it trains, what it reuses, and the numbers it puts on record."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from ragrad_ext.detection import compare as compare_module
from ragrad_ext.detection.compare import compare
from ragrad_ext.detection.files import write_json
from ragrad_ext.detection.report.examples import choose_examples
from ragrad_ext.detection.report.record import record
from ragrad_ext.detection.runs import Run
from ragrad_ext.detection.settings import Settings

from ..lib.folders import write_folder
from ..lib.tolerances import BY_HAND

TINY = Settings(epochs=1, scenes=4, width=96, height=96, device="cpu")


def run(method: str, seed: int, ap: float, night: float = math.nan) -> Run:
    table = {
        name: {"AP": value, "AP50": value, "AP75": value}
        for name, value in (("overall", ap), ("night", night))
    }
    return Run(method, seed, table, [{"epoch": 1, "loss": 1.0, "seconds": 2.5}])


def test_results_by_hand() -> None:
    runs = [run("none", 0, 0.2), run("ragrad", 0, 0.3), run("none", 1, 0.4), run("ragrad", 1, 0.5)]
    found = record(TINY, runs, "the command")
    none = found["summary"]["none"]["overall"]["AP"]
    assert none["mean"] == pytest.approx(0.3)
    assert none["std"] == pytest.approx(math.sqrt(0.02))  # (0.1² + 0.1²) / (2 - 1)
    difference = found["differences"]["ragrad - none"]["overall"]["AP"]
    assert difference["by_seed"] == pytest.approx({0: 0.1, 1: 0.1})
    assert (difference["mean"], difference["n"]) == (pytest.approx(0.1), 2)
    assert difference["std"] == pytest.approx(0, abs=BY_HAND)
    assert [r["seconds"] for r in found["runs"]] == [2.5] * 4
    assert found["command"] == "the command"
    assert "seed" not in found["settings"]
    assert found["settings"]["epochs"] == 1


def test_results_are_json_even_where_nothing_was_measured(tmp_path: Path) -> None:
    write_json(tmp_path / "results.json", record(TINY, [run("none", 0, 0.2)], ""))
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["summary"]["none"]["night"]["AP"]["mean"] is None
    assert found["differences"] == {}


def test_examples_take_conditions_in_turn_and_skip_the_empty() -> None:
    counts = [1, 0, 2, 1, 1]
    data: Any = SimpleNamespace(
        conditions=["night", "day", "day", "night", "day"],
        target=lambda i: {"boxes": torch.zeros(counts[i], 4)},
    )
    # in turn, day first: 1 (empty), 0, 2, 3, 4
    assert choose_examples(data, 3) == [0, 2, 3]
    assert choose_examples(data, 9) == [0, 2, 3, 4]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"jobs": 0}, r"jobs must be 1 or more, got 0"),
        ({"seeds": ()}, r"seeds must be given, each once, got \[\]"),
        ({"seeds": (1, 1)}, r"seeds must be given, each once, got \[1, 1\]"),
        ({"methods": ("none", "none")}, r"methods must be given, each once"),
        ({"methods": ("pcgrad",)}, r"method must be one of none, ragrad"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(
    tmp_path: Path, given: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        compare(TINY, tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()


def test_every_folder_is_checked_before_the_first_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compare_module, "open_splits", None)
    (tmp_path / "ragrad-seed1").mkdir()
    old = TINY.change(seed=1, lr=0.5).to_dict()
    write_json(tmp_path / "ragrad-seed1" / "settings.json", old)
    with pytest.raises(FileExistsError, match="ragrad-seed1 already holds a run"):
        compare(TINY, tmp_path, seeds=(0, 1))
    with pytest.raises(ValueError, match=r"ragrad-seed1 holds .* \(lr: 0.5 there, 0.002 here\)"):
        compare(TINY, tmp_path, seeds=(0, 1), resume=True)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each image file was decoded."""
    found: Counter[str] = Counter()
    convert = Image.Image.convert

    def counted(self: Image.Image, *args: Any, **kwargs: Any) -> Image.Image:
        if name := getattr(self, "filename", ""):
            found[name] += 1
        return convert(self, *args, **kwargs)

    monkeypatch.setattr(Image.Image, "convert", counted)
    return found


def test_compare_from_end_to_end(tmp_path: Path, decoded: Counter[str]) -> None:
    write_folder(tmp_path / "data", train=4, val=2)
    settings = TINY.change(data=str(tmp_path / "data"))
    report, answer = compare(settings, tmp_path, seeds=(0, 1), examples=1, progress=False)
    # Once for four runs and a report, both images of each pair.
    assert set(decoded.values()) == {1}
    assert len(decoded) == 2 * (4 + 2)
    assert report == tmp_path / "report.html"
    assert "over 2 seeds" in answer
    assert "<html" in report.read_text()
    found = json.loads((tmp_path / "results.json").read_text())
    assert [(r["method"], r["seed"]) for r in found["runs"]] == [
        ("none", 0),
        ("ragrad", 0),
        ("none", 1),
        ("ragrad", 1),
    ]
    assert len(found["runs"][1]["conflicts"]) == 1
    assert found["runs"][0]["conflicts"] == []

    # Interrupted before the last run: what is finished is read, the rest is trained.
    (tmp_path / "ragrad-seed1" / "metrics.json").unlink()
    (tmp_path / "ragrad-seed1" / "checkpoint.pt").unlink()
    report.unlink()
    before = {p: p.stat().st_mtime_ns for p in tmp_path.glob("*/metrics.json")}
    compare(settings, tmp_path, seeds=(0, 1), examples=1, resume=True, progress=False)
    again = json.loads((tmp_path / "results.json").read_text())
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert [r["ap"] for r in again["runs"]] == [r["ap"] for r in found["runs"]]
    assert report.is_file()
