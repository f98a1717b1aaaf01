"""Write the tables of README.md and docs/findings.md, and the plot, anew from the result files.

Each table stands between ``<!-- table: NAME -->`` and ``<!-- end -->``. With ``--check`` nothing
is written; the exit code says whether every table is what its result file says. (The plot is not
compared: another matplotlib draws the same picture in other bytes.)
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import effectiveness_plot, effectiveness_tables, kernel_tables, plots

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PLOT = ROOT / "docs" / "kernels.svg"
FRONTIER = ROOT / "docs" / "effectiveness.svg"
PAGES = ("README.md", "docs/findings.md")
BLOCK = re.compile(r"(<!-- table: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def effectiveness() -> str:
    """Median Spearman correlation over data, seeds and stages, and the cost, per estimator."""
    rows = [r for r in judged() if effectiveness_tables.is_small(r)]
    scores = [r for r in rows if "spearman" in r]
    costs = {r["norm"]: r["added_steps"] for r in rows if "added_steps" in r}
    norms = list(costs)
    lines = [
        "| estimator | BatchNorm | GroupNorm | no norm | top 20 % found | a refresh costs |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name in dict.fromkeys(r["estimator"] for r in scores):
        mine = [r for r in scores if r["estimator"] == name]
        cells = [spread([r["spearman"] for r in mine if r["norm"] == norm]) for norm in norms]
        overlap = statistics.median(r["top_overlap"] for r in mine)
        added = statistics.median(costs[norm][name] for norm in norms)
        price = "nothing measurable" if added < 0.05 else f"{added:.1f} steps"
        lines.append(f"| {name} | {' | '.join(cells)} | {100 * overlap:.0f} % | {price} |")
    return "\n".join(lines)


def effectiveness_by_stage() -> str:
    """Median Spearman correlation over seeds: data and norm down, estimators across, by epoch."""
    small = [r for r in judged() if effectiveness_tables.is_small(r)]
    scores = [r for r in small if "spearman" in r]
    names = list(dict.fromkeys(r["estimator"] for r in scores))
    lines = ["| crops | norm | epoch | " + " | ".join(names) + " |"]
    lines.append("| --- " * (3 + len(names)) + "|")
    for key in dict.fromkeys((r["data"], r["norm"], r["epoch"]) for r in scores):
        group = [r for r in scores if (r["data"], r["norm"], r["epoch"]) == key]
        medians = [
            statistics.median(r["spearman"] for r in group if r["estimator"] == n) for n in names
        ]
        lines.append(f"| {key[0]} | {key[1]} | {key[2]} | {' | '.join(map(two, medians))} |")
    return "\n".join(lines)


def gates() -> str:
    """Median Spearman correlation over seeds: what follows a row, by the place of its gate."""
    rows = load("gates")["rows"]
    names = ["row", "gain", "norm", "activation", "Gate"]
    lines = ["| behind the row | epochs | " + " | ".join(names) + " |"]
    lines.append("| --- " * (2 + len(names)) + "|")
    for kind, epochs in dict.fromkeys((r["kind"], r["epochs"]) for r in rows):
        group = [r["spearman"] for r in rows if (r["kind"], r["epochs"]) == (kind, epochs)]
        medians = [two(statistics.median(scores[n] for scores in group)) for n in names]
        lines.append(f"| {kind} | {epochs} | {' | '.join(medians)} |")
    return "\n".join(lines)


def degraded() -> str:
    """P(rgb > ir) by what is degraded, median and range over seeds, at the last epoch."""
    rows = load("degraded")["rows"]
    last = max(r["epoch"] for r in rows)
    names = {"both": "R", "effectiveness": "E^", "sensitivity": "S^"}
    lines = ["| degraded | " + " | ".join(f"P({n}: rgb > ir)" for n in names.values()) + " |"]
    lines.append("| --- " * (1 + len(names)) + "|")
    for which in dict.fromkeys(r["degraded"] for r in rows):
        mine = [r for r in rows if r["degraded"] == which and r["epoch"] == last]
        lines.append(f"| {which} | {' | '.join(spread([r[n] for r in mine]) for n in names)} |")
    return "\n".join(lines)


def msrs() -> str:
    """AP, AP50, AP75 in points: mean and sample std over seeds, and the paired difference."""
    record = load("msrs")
    by_method, (difference,) = record["summary"], record["differences"].values()
    conditions = list(difference)
    lines = ["| images | metric | without | with RaGrad | paired difference | 95 % interval |"]
    lines.append("| --- " * 6 + "|")
    for condition in conditions:
        for metric in ("AP", "AP50", "AP75"):
            without, with_ = (by_method[m][condition][metric] for m in ("none", "ragrad"))
            gap = difference[condition][metric]
            low, high = (100 * x for x in gap["interval"])
            lines.append(
                f"| {condition} | {metric} | {points(without)} | {points(with_)} | "
                f"{100 * gap['mean']:+.2f} | {low:+.2f} to {high:+.2f} |"
            )
    return "\n".join(lines)


TABLES: dict[str, Callable[[], str]] = {
    "effectiveness": effectiveness,
    "effectiveness-by-stage": effectiveness_by_stage,
    "gates": gates,
    "effectiveness-networks": lambda: effectiveness_tables.agreement(judged()),
    "effectiveness-overlap": lambda: effectiveness_tables.overlap(judged()),
    "effectiveness-stages": lambda: effectiveness_tables.by_stage(judged()),
    "effectiveness-price": lambda: effectiveness_tables.price(judged()),
    "degraded": degraded,
    "msrs": msrs,
    "kernels": lambda: kernel_tables.contestants(kernels()),
    "kernels-models": lambda: kernel_tables.models(kernels()),
    "kernels-growth": lambda: kernel_tables.growth(kernels()),
    "kernels-host": lambda: kernel_tables.host(kernels("kernels_cpu_host")),
}


def judged() -> list[dict[str, Any]]:
    return list(load("effectiveness")["rows"])


def kernels(name: str = "kernels_cpu") -> list[dict[str, Any]]:
    return list(load(name)["rows"])


def load(name: str) -> dict[str, Any]:
    return dict(json.loads((RESULTS / f"{name}.json").read_text()))


def two(x: float) -> str:
    return f"{x:.2f}"


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def points(cell: dict[str, Any]) -> str:
    return f"{100 * cell['mean']:.2f} ± {100 * cell['std']:.2f}"


def rewritten(text: str) -> str:
    """A page with every table made anew."""
    return BLOCK.sub(lambda m: f"{m[1]}{TABLES[m[2]]()}\n{m[3]}", text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing, compare")
    stale = []
    check = parser.parse_args().check
    for page in (ROOT / name for name in PAGES):
        old = page.read_text()
        new = rewritten(old)
        if new != old:
            stale.append(page.name)
            if not check:
                page.write_text(new)
    if not check:
        plots.kernels(kernels(), PLOT)
        if effectiveness_tables.of_networks(judged()):
            effectiveness_plot.frontier(judged(), FRONTIER)
    if stale:
        print(f"{'stale' if check else 'rewritten'}: {', '.join(stale)}")
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
