"""The tables that docs/ makes of runs that train: degraded streams, accuracy, overhead."""

from __future__ import annotations

import statistics
from typing import Any

from ragrad_ext.detection.report_statistics import Paired, spread

Row = dict[str, Any]

SCORES = {
    "both": "R", "effectiveness": "E^", "sensitivity": "S^", "effectiveness, Eq. 2": "E^ by Eq. 2",
}  # fmt: skip
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
            found = spread(mine.values())
            cells.append(f"{found.mean:.2f} ± {found.std:.2f}")
            pairs = Paired(tuple(mine), tuple(mine[seed] - plain[seed] for seed in mine))
            low, high = pairs.interval
            gap = f"{pairs.spread.mean:+.2f} ({low:+.2f} to {high:+.2f})"
            cells.append("" if method == "none" else gap)
        name = "no correction" if method == "none" else method
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def overhead(rows: list[Row]) -> str:
    """What a step takes more: RaGrad's own calls, and the rounds' differences; and memory."""
    names = list(dict.fromkeys(r["contestant"] for r in rows))
    heads = " | ".join(f"{n}: time | memory" for n in names)
    lines = [f"| BatchNorm | images | a plain step | {heads} |"]
    lines.append("| --- " * (3 + 2 * len(names)) + "|")
    for key in dict.fromkeys((r["norm"], r["images"]) for r in rows):
        mine = {r["contestant"]: r for r in rows if (r["norm"], r["images"]) == key}
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
