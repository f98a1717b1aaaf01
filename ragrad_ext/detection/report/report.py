"""The report that `compare` writes: one HTML file that needs nothing else.

Every number in a sentence comes from the runs, and no sentence claims more than the seeds show.
The first run's method is the baseline.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

import numpy as np

from ragrad_ext import __version__

from ..files import write_whole
from ..runs import Run
from . import panels
from .charts import IR, RGB, Curve, dots, heat, lines, mean_curve
from .examples import Example
from .html import cards, chart_row, details, dot, nav, note, page, section, table
from .panels import MOST_FALSE
from .results import METRICS, Results
from .statistics import Paired, Spread, points, spread
from .summary import answer, difference_name, interval, limits

SCORE = 0.3  # detections below it are not drawn


def write_report(
    path: str | Path,
    runs: Sequence[Run],
    examples: Sequence[Example] = (),
    *,
    title: str = "Detection with and without RaGrad",
    command: str = "",
    settings: Mapping[str, object] | None = None,
    classes: Sequence[str] = (),
) -> Path:
    """Writes the report to `path`, whole or not at all, and returns the path.

    `classes` names labels 1, 2, ...; a label beyond them is shown by its number. What was not
    measured is left out. Raises ValueError for no runs, for a method and seed given twice, or for
    runs of one method that disagree about its layers, before anything is written.
    """
    results = Results(runs)
    parts = [
        ("ap", "Average precision", _precision(results)),
        ("curves", "Loss and AP over epochs", _curves(results)),
        ("layers", "Conflicts and reliability by layer", _layers(results)),
        ("detections", "Detections", _detections(examples, results, classes)),
        ("saliency", "Saliency", _saliency(examples, results, classes)),
    ]
    parts = [part for part in parts if part[2]]
    body = [
        f"<header><h1>{escape(title)}</h1>",
        f'<p class="lead">{escape(answer(results))}</p>',
        note(limits(results)),
        nav([(key, heading) for key, heading, _ in parts]),
        "</header>",
        _cards(results),
        details(command, settings or {}),
        *(section(key, heading, *content) for key, heading, content in parts),
    ]
    text = page(title, "\n".join(part for part in body if part), __version__)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, lambda file: file.write(text.encode()))
    return path


def _cards(results: Results) -> str:
    items = []
    for method, runs in results.runs.items():
        small = f"{len(runs)} seed{'s' * (len(runs) > 1)}"
        items.append((f"{dot(results.look[method])}, AP", str(results.spread(method)), small))
    for method in results.others:
        pairs = results.paired(method)
        small = f"95% interval {interval(pairs)}" if len(pairs.seeds) > 1 else pairs.verdict
        number = f"{points(pairs.spread.mean)} points"
        items.append((escape(difference_name(method, results)), number, small))
    return cards(items)


def _precision(results: Results) -> list[str]:
    """The AP tables, by condition and seed by seed, and the same as charts."""
    if not any(results.spread(method).n for method in results.runs):
        return [note("No AP was measured in these runs.")]
    groups = []
    for condition in ("overall", *results.conditions):
        rows = [
            [dot(look), *(_cell(results.spread(method, condition, m)) for m in METRICS)]
            for method, look in results.look.items()
        ]
        for method in results.others:
            pairs = [results.paired(method, condition, m) for m in METRICS]
            rows.append([escape(difference_name(method, results)), *map(_paired_cell, pairs)])
        groups.append((condition.capitalize(), rows))
    counts = ", ".join(f"{results.label(m)} n = {len(runs)}" for m, runs in results.runs.items())
    text = (
        "The table shows COCO average precision in [0, 1]; AP is its mean over IoU 0.50 to 0.95. "
        f"Numbers are mean ± sample standard deviation over seeds ({counts}"
        f"{': a single seed has no spread' * (len(results.seeds) == 1)})."
    )
    if results.others and len(results.seeds) > 1:
        text += (
            " Differences are in points (hundredths of AP), paired by seed, with the 95% interval"
            " of Student's t in brackets. One in twenty such intervals misses the truth by chance;"
            " this table has many."
        )
    elif results.others:
        text += " Differences are in points (hundredths of AP)."
    parts = [note(text), table(["", *METRICS], groups)]
    if results.others:
        parts += ["<h3>Seed by seed</h3>", _seed_table(results)]
    return [*parts, chart_row(*_precision_charts(results))]


def _cell(ap: Spread) -> str:
    mean, _, std = str(ap).partition(" ± ")
    return mean + (f" <small>± {std}</small>" if std else "")


def _paired_cell(pairs: Paired) -> str:
    small = f" <small>[{interval(pairs)}]</small>" if len(pairs.seeds) > 1 else ""
    return points(pairs.spread.mean) + small


def _seed_table(results: Results) -> str:
    ap = {method: results.values(method) for method in results.runs}
    pairs = [results.paired(method) for method in results.others]
    by_seed = [dict(zip(p.seeds, p.differences, strict=True)) for p in pairs]
    rows = [
        [
            f"seed {seed}",
            *(str(spread([of.get(seed, math.nan)])) for of in ap.values()),
            *(points(of.get(seed, math.nan)) for of in by_seed),
        ]
        for seed in results.seeds
    ]
    mean = ["mean", *(_cell(results.spread(method)) for method in ap), *map(_paired_cell, pairs)]
    heads = [*map(dot, results.look.values())]
    heads += [escape(difference_name(method, results)) for method in results.others]
    return table(["AP, overall", *heads], [("", rows), ("", [mean])])


def _precision_charts(results: Results) -> list[tuple[str, str]]:
    """AP by seed and by condition, each where there is more than one."""
    found = []
    values = {m: results.values(m) for m in results.runs}
    several = len(results.seeds) > 1
    if several:
        by_seed = {
            results.look[m]: np.array([of.get(s, math.nan) for s in results.seeds])
            for m, of in values.items()
        }
        names = [f"seed {seed}" for seed in results.seeds]
        words = "AP of each seed; a line joins the two methods of a seed."
        found.append((dots(names, by_seed, "AP", words), words))
    if results.conditions:
        means, seeds = {}, {}
        for method, look in results.look.items():
            columns = [results.values(method, c).values() for c in results.conditions]
            seeds[look] = np.array([list(column) for column in columns]).T
            means[look] = np.array([spread(column).mean for column in columns])
        words = "AP by condition" + ": mean over seeds; small marks: single seeds" * several + "."
        found.append((dots(results.conditions, means, "AP", words, seeds), words))
    return found


def _curves(results: Results) -> list[str]:
    items = []
    for key, axis, words in (
        ("loss", "training loss", "Training loss, mean of each epoch"),
        ("AP", "AP", "AP where it was evaluated during training"),
    ):
        if series := results.curves(key):
            several = any(len(curves) > 1 for _, curves in series)
            ends = ", ".join(f"{look.label} {_last(curves):.3f}" for look, curves in series)
            thin = " Thin lines are single seeds, the thick line is their mean." * several
            caption = f"{words}.{thin} Last: {ends}."
            items.append((lines(series, axis, caption), caption))
    return [chart_row(*items)] if items else []


def _last(curves: Sequence[Curve]) -> float:
    """The mean in the last epoch that every seed has."""
    _, values = mean_curve(curves)
    return float(values[-1]) if len(values) else math.nan


def _layers(results: Results) -> list[str]:
    """For each method that corrects: where it found conflicts, and which modality is reliable."""
    parts = []
    layers = {look: results.layers(method) for method, look in results.look.items()}
    measured = {look: found for look, found in layers.items() if found is not None}
    for look, found in measured.items():
        rgb, ir = found.rgb.mean(0), found.ir.mean(0)
        text = (
            f"Reliability (Eq. 5) of rgb is below that of ir in {(rgb < ir).sum()} of "
            f"{len(found.names)} layers; the mean over layers is {rgb.mean():.3f} for rgb and "
            f"{ir.mean():.3f} for ir. It is relative to the channels of the same model: it "
            "compares modalities and layers, not models."
        )
        if series := dict(results.curves("conflicts")).get(look):
            text = f"In the last epoch {_last(series):.1%} of all channels were in conflict. {text}"
        conflicts = (
            "Conflict fraction by layer and epoch: the share of a layer's channels whose gradients "
            "conflict (Eq. 6), mean over logged steps and seeds. First layer on top."
        )
        epochs = f"the last {found.tail} epochs" if found.tail > 1 else "the last epoch"
        several = "; small marks are single seeds" * (len(found.rgb) > 1)
        reliability = f"Mean reliability R by layer over {epochs}{several}."
        seeds = {RGB: found.rgb, IR: found.ir}
        parts += [
            f"<h3>{dot(look)}</h3>" if len(measured) > 1 else "",
            note(text),
            chart_row(
                (
                    heat(found.names, found.epochs, found.conflicts, "in conflict", conflicts),
                    conflicts,
                ),
                (
                    dots(found.names, {RGB: rgb, IR: ir}, "reliability R", reliability, seeds),
                    reliability,
                ),
            ),
        ]
    return parts


def _detections(examples: Sequence[Example], results: Results, classes: Sequence[str]) -> list[str]:
    if not examples:
        return []
    text = (
        f"Detections with a score of at least {SCORE} are matched with objects one to one, by "
        "descending score, at an IoU of 0.5. A wrong class overlaps an unmatched object of another "
        f"class. Other detections are false positives (the {MOST_FALSE} with the highest scores "
        "are drawn); other objects are missed. Hover over a box to read its class and score."
    )
    shown = [
        panels.detections(f"example{i}", example, results.look, classes, SCORE)
        for i, example in enumerate(examples)
    ]
    return [note(text), panels.legend(), *shown]


def _saliency(examples: Sequence[Example], results: Results, classes: Sequence[str]) -> list[str]:
    shown = [
        panels.saliency(example, results.look, classes) for example in examples if example.saliency
    ]
    if not shown:
        return []
    text = (
        "These maps show where each detector looks. Gradient saliency measures how much a pixel of "
        "one modality changes the evidence for the detections; both modalities of a method share "
        "one scale. LayerCAM shows which places of the fused features carry that evidence. Thin "
        "boxes are the ground truth."
    )
    return [note(text), panels.ramp("0", "1, the largest value of the scale"), *shown]
