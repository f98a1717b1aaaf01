"""The report: its numbers by hand, its page by parsing it, and everything that may be missing."""

from __future__ import annotations

import base64
import io
import math
import re
import sys
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image

from ragrad_ext.detection.evaluation.matching import match
from ragrad_ext.detection.report.charts import PALETTE, mean_curve, styles
from ragrad_ext.detection.report.examples import Example
from ragrad_ext.detection.report.panels import Layout, in_words, outcome_marks, overlay
from ragrad_ext.detection.report.report import write_report
from ragrad_ext.detection.report.results import Results
from ragrad_ext.detection.runs import LayerHistory, Run

CLASSES = ("person", "car")
METHODS = ("none", "ragrad")
VOID = {"meta", "br", "path", "rect", "image", "use"}


def history(epochs: int = 3, layers: int = 4) -> LayerHistory:
    grid = np.linspace(0.1, 0.3, epochs * layers).reshape(epochs, layers)
    names = [f"backbone.rgb.stage{i}.conv.weight" for i in range(layers)]
    return LayerHistory(names, np.arange(1, epochs + 1), grid, grid, grid[::-1])


def run(method: str, seed: int, ap: float = 0.3, epochs: int = 3) -> Run:
    values = {"AP": ap, "AP50": 2 * ap, "AP75": ap / 2}
    rows: list[dict[str, float]] = [
        {"epoch": e, "loss": 2.0 / e, "lr": 0.1, "seconds": 1.5} for e in range(1, epochs + 1)
    ]
    rows[-1].update(values)
    if method != "none":
        for row in rows:
            row["conflicts"] = 0.125
    return Run(
        method=method,
        seed=seed,
        ap={"overall": values, "day": values, "night": values},
        epochs=rows,
        layers=history(epochs) if method != "none" else None,
    )


def noise(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def example(*methods: str, title: str = "scene 7 (night)") -> Example:
    """Two objects; every method finds the first, takes the second for a person, invents one."""
    target = {
        "boxes": torch.tensor([[2.0, 2, 12, 12], [20, 2, 30, 12], [2, 14, 12, 20]]),
        "labels": torch.tensor([1, 2, 2]),
        "degradation": torch.tensor([0.75, 0.0]),
    }
    found = {
        "boxes": torch.tensor([[2.0, 2, 12, 12], [20, 2, 30, 12], [32, 16, 38, 22], [0, 0, 9, 9]]),
        "labels": torch.tensor([1, 1, 2, 2]),
        "scores": torch.tensor([0.9, 0.8, 0.7, 0.1]),
    }
    image, maps = noise(4, 24, 40), (noise(24, 40), noise(24, 40), noise(24, 40))
    every: dict[str, Mapping[str, Any]] = dict.fromkeys(methods, found)
    return Example(title, image, target, every, dict.fromkeys(methods, maps))


def both(seeds: int = 3) -> list[Run]:
    return [run(m, s, 0.3 + 0.01 * s * (m == "ragrad")) for s in range(seeds) for m in METHODS]


class Page(HTMLParser):
    """Reads a page and complains about what a browser would silently repair."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.svgs: list[dict[str, str | None]] = []
        self.words = ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        self.note(tag, attrs)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.note(tag, attrs)

    def note(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if name := values.get("id"):
            self.ids.append(name)
        if tag == "svg":
            self.svgs.append(values)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words += data


def written(tmp_path: Path, runs: list[Run], *args: Any, **kwargs: Any) -> tuple[str, Page]:
    text = write_report(tmp_path / "report.html", runs, *args, **kwargs).read_text("utf-8")
    return text, Page(text)


# ------------------------------------------------------------------ numbers


def test_a_mean_curve_keeps_to_the_epochs_that_all_seeds_have() -> None:
    long = np.array([1.0, 2, 3]), np.array([4.0, 2, 1])
    short = np.array([2.0, 3]), np.array([4.0, 3])
    epochs, values = mean_curve([long, short])
    assert epochs.tolist() == [2, 3]
    assert values.tolist() == [3, 2]


def test_layers_are_averaged_over_seeds_and_shared_epochs() -> None:
    names = ["rgb.a.conv.weight", "rgb.b.conv.weight"]

    def one(seed: int, epochs: list[int], value: float) -> Run:
        grid = np.array(epochs)[:, None] * np.array([value, 2 * value])
        return Run("ragrad", seed, {}, [], LayerHistory(names, np.array(epochs), grid, grid, grid))

    found = Results([one(0, [1, 2, 3], 0.1), one(1, [2, 3], 0.3)]).layers("ragrad")
    assert found is not None
    assert found.names == ["a", "b"]
    assert found.epochs.tolist() == [2, 3]
    # Epoch 2: (.1 * 2 + .3 * 2) / 2; epoch 3 likewise; the second layer twice that.
    assert found.conflicts == pytest.approx(np.array([[0.4, 0.8], [0.6, 1.2]]))
    # Reliability of the last epoch alone (a tenth of two, at least one), seed by seed.
    assert found.rgb == pytest.approx(np.array([[0.3, 0.6], [0.9, 1.8]]))


def test_methods_keep_their_looks_whatever_stands_beside_them() -> None:
    assert styles(["x", "ragrad", "none"])["ragrad"] == styles(["ragrad"])["ragrad"]
    looks = styles(["none", "ragrad", "pcgrad", "imtl"]).values()
    assert len({look.role for look in looks}) == len({look.marker for look in looks}) == 4


# ------------------------------------------------------------------ examples


def test_every_outcome_gets_its_mark() -> None:
    scene = example("none")
    found = scene.detections["none"]
    matches = match(found, scene.target)
    marks = outcome_marks(found, scene.target, matches, CLASSES)
    assert [(mark.kind, mark.text, mark.tip) for mark in marks] == [
        ("hit", "person .90", "person .90: right class and place"),
        ("wrong", "person .80", "person .80: wrong class, is car"),
        ("false", "car .70", "car .70: false positive"),
        ("miss", "car", "car: missed"),
    ]
    assert marks[3].box == [2, 14, 12, 20]
    assert in_words(matches) == "1 right, 1 wrong class, 1 missed, 1 false"


def test_of_many_false_positives_the_surest_are_drawn_and_all_are_counted() -> None:
    scores = torch.linspace(0.4, 0.9, 11)
    corners = torch.arange(11.0)[:, None] * torch.ones(4) + torch.tensor([0.0, 0, 5, 5])
    found = {"boxes": corners, "labels": torch.ones(11, dtype=torch.int64), "scores": scores}
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    matches = match(found, nothing)
    marks = outcome_marks(found, nothing, matches, CLASSES)
    assert [mark.text for mark in marks] == [f"person .{s}" for s in range(90, 50, -5)]
    assert in_words(matches) == "0 right, 0 wrong class, 0 missed, 11 false (8 drawn)"


def test_labels_keep_clear_of_each_other_where_there_is_room() -> None:
    layout = Layout(100.0)
    spots = [(10.0, 10.0), (10.0, 30.0), (-50.0, 60.0)]
    placed = [layout.place(40, 11, spots) for _ in range(4)]
    assert placed == [(10, 10), (10, 30), (1, 60), (10, 10)]


def test_an_overlay_is_dim_where_nothing_is_and_bright_where_something_is() -> None:
    grey = np.full((1, 3), 0.5, dtype=np.float32)
    pixels = overlay(grey, np.array([[0.0, 1.0, np.nan]], dtype=np.float32))
    assert pixels[0, 0] == pytest.approx(0.65 * 0.5 * np.ones(3))
    assert pixels[0, 1] == pytest.approx(np.array(matplotlib.colormaps["inferno"](1.0)[:3]))
    assert pixels[0, 2] == pytest.approx(pixels[0, 0])


def test_photographs_are_embedded_once_and_drawn_upon(tmp_path: Path) -> None:
    text, page = written(tmp_path, both(), [example(*METHODS)], classes=CLASSES)
    images = re.findall(r'<image [^>]*href="data:image/jpeg;base64,([^"]+)"', text)
    assert len(images) == 2 + 3 * len(METHODS)  # both photographs, three maps a method
    assert {Image.open(io.BytesIO(base64.b64decode(i))).size for i in images} == {(40, 24)}
    assert text.count('<use href="#example0-') == 2 * len(METHODS)
    for kind in ("hit", "wrong", "miss", "false"):
        # On both photographs of both methods: a box and its words; and once in the legend.
        assert len(re.findall(rf'<g class="mark {kind}">', text)) == 2 * 2 * len(METHODS)
    assert "1 right, 1 wrong class, 1 missed, 1 false" in page.words
    assert "visible 75%, infrared 0%" in page.words


# ------------------------------------------------------------------ the page


def test_the_page_is_sound_and_needs_nothing_else(tmp_path: Path) -> None:
    text, page = written(
        tmp_path,
        both(),
        [example(*METHODS), example(*METHODS, title="another")],
        title="RaGrad on scenes",
        command="python -m ragrad_ext compare",
        settings={"epochs": 3},
        classes=CLASSES,
    )
    links = [v for _, name, v in page.attributes if name in ("href", "xlink:href", "src")]
    assert {v[:1] for v in links if not v.startswith("data:image/")} == {"#"}
    assert {v[1:] for v in links if v.startswith("#")} <= set(page.ids)
    assert not re.search(r"https?://|<script|<link|@import|url\((?!#)", text)
    assert all(svg.get("aria-label") or svg.get("aria-hidden") for svg in page.svgs)
    sections = ["ap", "curves", "layers", "detections", "saliency"]
    assert [key for key in page.ids if key in sections] == sections
    for words in ("RaGrad on scenes", "python -m ragrad_ext compare", "12.5% of all channels"):
        assert words in page.words


def test_the_summary_states_the_numbers_by_hand(tmp_path: Path) -> None:
    # RaGrad .300 .310 .320 against .300 .300 .300: +1.0 points, s = 1.0, margin 4.3027 / sqrt(3).
    _, page = written(tmp_path, both())
    assert (
        "The detector reached an AP of 0.310 ± 0.010 with RaGrad and 0.300 ± 0.000 without "
        "correction (mean ± sample standard deviation over 3 seeds). Paired by seed, RaGrad "
        "differs by +1.0 points (95% interval \u22121.5 to +3.5): within the noise of the seeds."
    ) in page.words


def test_one_seed_is_said_to_show_nothing(tmp_path: Path) -> None:
    _, page = written(tmp_path, [run("none", 4, 0.3), run("ragrad", 4, 0.35)])
    assert "with RaGrad and 0.300 without correction (one seed each)" in page.words
    assert "RaGrad differs by +5.0 points: one seed is not enough" in page.words
    assert "interval" not in page.words


def test_the_limits_are_said_in_numbers(tmp_path: Path) -> None:
    _, page = written(tmp_path, both())
    # The margin of the summary above: 4.3027 / sqrt(3) = 2.484.
    assert "For RaGrad, 3 seeds cannot tell a difference below 2.5 points from noise." in page.words
    assert "An interval that contains 0 does not show that two methods are equal" in page.words
    _, page = written(tmp_path, both(1))
    assert "One seed cannot show a difference" in page.words
    _, page = written(tmp_path, [run("none", 0)])
    assert "cannot" not in page.words


def test_charts_follow_the_theme_and_leave_matplotlib_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # importing it would fail
    settings = [key for key in matplotlib.rcParams if key != "backend"]  # reading it imports
    before = [matplotlib.rcParams[key] for key in settings]
    text, _ = written(tmp_path, both())
    assert [matplotlib.rcParams[key] for key in settings] == before
    drawn = "".join(re.findall(r'<svg class="chart".*?</svg>', text, flags=re.DOTALL))
    assert "var(--ragrad)" in drawn
    assert not [light for light, _ in PALETTE.values() if light in drawn]


def test_the_same_results_give_the_same_bytes(tmp_path: Path) -> None:
    pages = [written(tmp_path, both(), [example(*METHODS)])[0] for _ in range(2)]
    assert pages[0] == pages[1]


EVIL = "<script>alert('$&$')</script>"


def test_whatever_is_given_is_escaped(tmp_path: Path) -> None:
    runs = [run(m, s) for m in ("none", EVIL) for s in (0, 1)]
    text, page = written(
        tmp_path,
        runs,
        [example(EVIL, title=EVIL)],
        title=EVIL,
        command=EVIL,
        settings={EVIL: EVIL},
        classes=(EVIL, EVIL),
    )
    assert "<script" not in text
    assert page.words.count(EVIL) > 10


@pytest.mark.parametrize(
    ("runs", "absent"),
    [
        ([run("none", 0)], {"layers"}),
        ([run("ragrad", 0), run("ragrad", 1)], set()),
        ([run("ragrad", 0, epochs=1)], set()),
        ([run("none", 0), run("ragrad", 1)], set()),
        ([run(m, 0) for m in ("none", "ragrad", "pcgrad", "imtl")], set()),
        ([run("none", 0, math.nan), run("ragrad", 0, math.nan)], set()),
        ([run("none", 0), run("ragrad", 0, math.nan)], set()),
        ([Run("none", 0, {}), Run("ragrad", 0, {}, [], history(0))], {"curves", "layers"}),
        ([Run("none", 0, {"overall": {"AP": 0.5}, "all": {"AP": 0.5}})], {"curves", "layers"}),
        ([Run("none", 0, {}, [{"epoch": 1, "loss": math.nan}])], {"curves", "layers"}),
    ],
)
@pytest.mark.filterwarnings("error")
def test_what_is_missing_is_left_out(tmp_path: Path, runs: list[Run], absent: set[str]) -> None:
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    scene = Example("an empty street", noise(4, 8, 8), nothing)
    for examples, drawn in (([], set()), ([scene], {"detections"})):
        _, page = written(tmp_path, runs, examples)
        sections = {"ap", "curves", "layers", "detections", "saliency"}
        assert sections & set(page.ids) == {"ap", "curves", "layers"} - absent | drawn
        assert "nan" not in page.words.lower()


def test_a_label_without_a_name_is_shown_by_its_number(tmp_path: Path) -> None:
    assert "class 2 .70: false positive" in written(tmp_path, both(), [example("none")])[1].words


# ------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("runs", "words"),
    [
        ([], "needs at least one run, found none"),
        ([run("none", 3), run("none", 3)], "two runs of method 'none' with seed 3; pass each once"),
        (
            [Run("ragrad", s, {}, [], history(layers=s + 2)) for s in range(2)],
            r"name different layers \(layers by run: \[2, 3\]\)",
        ),
    ],
)
def test_bad_runs_are_refused_before_anything_is_written(
    tmp_path: Path, runs: list[Run], words: str
) -> None:
    path = tmp_path / "report.html"
    path.write_text("the report of yesterday")
    with pytest.raises(ValueError, match=words):
        write_report(path, runs)
    assert path.read_text() == "the report of yesterday"
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_a_layer_history_of_the_wrong_shape_is_refused() -> None:
    right, wrong = np.zeros((3, 2)), np.zeros((2, 3))
    with pytest.raises(ValueError, match=r"ir has shape \(2, 3\), but 3 epochs and 2 names"):
        LayerHistory(["a", "b"], np.arange(3), right, right, wrong)


def test_folders_are_made(tmp_path: Path) -> None:
    assert write_report(tmp_path / "new" / "folder" / "r.html", [run("none", 0)]).is_file()
