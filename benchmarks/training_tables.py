"""The tables that docs/ makes of runs that train: degraded streams, accuracy, AP, overhead."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from typing import Any

from ragrad_ext.detection.report.statistics import Paired, paired, spread

Row = dict[str, Any]

SCORES = {
    "both": "R", "effectiveness": "E^", "sensitivity": "S^", "effectiveness, Eq. 2": "E^ by Eq. 2",
}  # fmt: skip
METRICS = ("AP", "AP50")
DEPTHS = ("first third", "second", "last")


def degraded(rows: list[Row]) -> str:
    """AUC after the last epoch, by setting and kind: median and range over seeds."""
    last = max(r["epoch"] for r in rows)
    lines = ["| setting | images | degraded by | " + " | ".join(SCORES.values()) + " |"]
    lines.append("| --- " * (3 + len(SCORES)) + "|")
    for key in dict.fromkeys((r["setting"], r["data"], r["kind"]) for r in rows):
        mine = [r for r in rows if (r["setting"], r["data"], r["kind"]) == key]
        mine = [r for r in mine if r["epoch"] == last]
        cells = [_by_seed(mine, score) for score in SCORES]
        lines.append(f"| {' | '.join(key)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def degraded_by_depth(rows: list[Row]) -> str:
    """AUC over all kinds, seeds and modalities: epochs down, factors by depth across."""
    scores = ("effectiveness", "sensitivity")
    heads = [f"{SCORES[s]}, {d}" for s in scores for d in DEPTHS]
    lines = ["| setting | images | epoch | " + " | ".join(heads) + " |"]
    lines.append("| --- " * (3 + len(heads)) + "|")
    for key in dict.fromkeys((r["setting"], r["data"], r["epoch"]) for r in rows):
        mine = [r for r in rows if (r["setting"], r["data"], r["epoch"]) == key]
        cells = [
            f"{statistics.fmean(_third(r['auc'][score], d) for r in mine):.2f}"
            for score in scores
            for d in range(len(DEPTHS))
        ]
        lines.append(f"| {' | '.join(map(str, key))} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _by_seed(rows: list[Row], score: str) -> str:
    """Of each seed the mean over layers and both modalities; empty where it was not measured."""
    rows = [r for r in rows if score in r["auc"]]
    seeds = [
        statistics.fmean(statistics.fmean(r["auc"][score]) for r in rows if r["seed"] == seed)
        for seed in dict.fromkeys(r["seed"] for r in rows)
    ]
    if not seeds:
        return ""
    return f"{statistics.median(seeds):.2f} ({min(seeds):.2f} to {max(seeds):.2f})"


def _third(layers: list[float], which: int) -> float:
    n = len(layers)
    return statistics.fmean(layers[which * n // 3 : (which + 1) * n // 3])


def classify(rows: list[Row]) -> str:
    """Balanced accuracy in points: mean and std over seeds, and the difference paired by seed."""
    lines = ["| effectiveness | all | paired difference | night | paired difference |"]
    lines.append("| --- " * 5 + "|")
    for method in dict.fromkeys(r["method"] for r in rows):
        cells = []
        for score in ("balanced", "night"):
            mine, plain = (
                {r["seed"]: 100 * r[score] for r in rows if r["method"] == m}
                for m in (method, "none")
            )
            cells.append(_mean(mine))
            cells.append("" if method == "none" else _gap(paired(mine, plain)))
        name = "no correction" if method == "none" else method
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def average_precision(without: list[Row], with_: list[Row]) -> str:
    """AP, AP50, AP75 in points: mean and std over seeds, and the difference paired by seed."""
    lines = ["| images | metric | without | with RaGrad | paired difference | 95 % interval |"]
    lines.append("| --- " * 6 + "|")
    for condition in without[0]["ap"]:
        for metric in ("AP", "AP50", "AP75"):
            plain, corrected = (_points(runs, condition, metric) for runs in (without, with_))
            gap = paired(corrected, plain)
            low, high = gap.interval
            cells = [_mean(plain), _mean(corrected), f"{gap.spread.mean:+.2f}"]
            cells.append(f"{low:+.2f} to {high:+.2f}")
            lines.append(f"| {condition} | {metric} | {' | '.join(cells)} |")
    return "\n".join(lines)


def variants(runs: Mapping[str, list[Row]]) -> str:
    """Of each variant AP and AP50 over all images, in points, and differences to the first two."""
    names = list(runs)
    lines = [
        "| | seeds",
        *(f"{m} | {' | '.join(f'difference to {n}' for n in names[:2])}" for m in METRICS),
    ]
    lines = [" | ".join([*lines, "training loss at the end |"])]
    lines.append("| --- " * (3 + 3 * len(METRICS)) + "|")
    for place, (name, mine) in enumerate(runs.items()):
        cells = [name, str(len(mine))]
        for metric in METRICS:
            values = _points(mine, "overall", metric)
            cells.append(_mean(values))
            for other in names[:2]:
                against = _points(runs[other], "overall", metric)
                cells.append(_gap(paired(values, against)) if names.index(other) < place else "")
        losses = spread(r["loss"][-1] for r in mine)
        cells.append(f"{losses.mean:.3f} ± {losses.std:.3f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def variants_brief(runs: Mapping[str, list[Row]], names: Iterable[str]) -> str:
    """Of the named variants AP and AP50 over all images, and the difference to the first of all."""
    base = next(iter(runs))
    lines = [
        f"| | seeds | {' | '.join(f'{m} | difference to {base}' for m in METRICS)} |",
        "| --- " * (2 + 2 * len(METRICS)) + "|",
    ]
    for name in names:
        cells = [name, str(len(runs[name]))]
        for metric in METRICS:
            values, against = (_points(runs[n], "overall", metric) for n in (name, base))
            cells += [_mean(values), "" if name == base else _gap(paired(values, against))]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _points(runs: list[Row], condition: str, metric: str) -> dict[int, float]:
    return {r["seed"]: 100 * r["ap"][condition][metric] for r in runs}


def _mean(by_seed: Mapping[int, float]) -> str:
    found = spread(by_seed.values())
    return f"{found.mean:.2f} ± {found.std:.2f}"


def _gap(pairs: Paired) -> str:
    low, high = pairs.interval
    return f"{pairs.spread.mean:+.2f} ({low:+.2f} to {high:+.2f})"


def overhead(rows: list[Row], names: Iterable[str] = ()) -> str:
    """What a step takes more, for the named contestants or for all.

    Time of RaGrad's own calls, then the smallest and largest difference of a round; and memory.
    """
    names = list(names) or list(dict.fromkeys(r["contestant"] for r in rows))
    heads = " | ".join(f"{n}: time | memory" for n in names)
    lines = [f"| BatchNorm | images | a plain step | {heads} |"]
    lines.append("| --- " * (3 + 2 * len(names)) + "|")
    kinds = [(r["norm"], f"{r['images']} of {r['size'][0]} x {r['size'][1]}") for r in rows]
    for key in dict.fromkeys(kinds):
        mine = {r["contestant"]: r for r, kind in zip(rows, kinds, strict=True) if kind == key}
        plain = next(iter(mine.values()))
        cells = [f"{plain['step_seconds']:.1f} s, {plain['step_bytes'] / 2**30:.1f} GiB"]
        for name in names:
            r = mine[name]
            low, high = (f"{100 * r['rounds'][end]:+.0f}" for end in (0, -1))
            cells.append(f"{100 * r['own_time']:.2f} %; {low} to {high} %")
            cells.append(f"{100 * r['added_memory']:+.1f} %")
        norm = {"batch": "trained", "frozen": "frozen"}[key[0]]
        lines.append(f"| {norm} | {key[1]} | {' | '.join(cells)} |")
    return "\n".join(lines)
