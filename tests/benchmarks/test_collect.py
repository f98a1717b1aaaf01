"""Results of a comparison are kept whole, or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("scipy")

from benchmarks.collect import KEYS, collect


def finished(folder: Path, without: str = "", **changes: Any) -> Path:
    folder.mkdir()
    record = dict.fromkeys(KEYS, "as it was") | {"runs": [{"seed": 0}]} | changes
    record.pop(without, None)
    (folder / "results.json").write_text(json.dumps(record))
    return folder


def test_each_folder_becomes_one_file(tmp_path: Path) -> None:
    folders = [finished(tmp_path / name) for name in ("msrs", "msrs_more")]
    written = collect(folders, tmp_path / "results")
    assert [p.name for p in written] == ["msrs.json", "msrs_more.json"]
    for folder, path in zip(folders, written, strict=True):
        assert path.read_bytes() == (folder / "results.json").read_bytes()


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"runs": []}, "has no runs"), ({"without": "command"}, "lacks command")],
)
def test_nothing_is_written_where_one_record_is_wrong(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    good, bad = finished(tmp_path / "good"), finished(tmp_path / "bad", **changes)
    with pytest.raises(ValueError, match=message):
        collect([good, bad], tmp_path / "results")
    assert not (tmp_path / "results").exists()


def test_an_unfinished_comparison_is_named(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    with pytest.raises(ValueError, match=r"results\.json is missing: finish"):
        collect([tmp_path / "runs"], tmp_path / "results")


def test_two_folders_of_one_name_are_refused(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    folders = [finished(tmp_path / "msrs"), finished(tmp_path / "other" / "msrs")]
    with pytest.raises(ValueError, match="two folders of one name"):
        collect(folders, tmp_path / "results")
