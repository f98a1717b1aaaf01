"""The tables that docs/ makes of the rows of `effectiveness`: estimators down, networks across."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from typing import Any

Row = dict[str, Any]

TITLES = {
    "resnet18-batch": "ResNet-18, BatchNorm",
    "resnet18-group": "ResNet-18, GroupNorm",
    "fasterrcnn": "Faster R-CNN, frozen BatchNorm",
    "vit": "vision transformer",
    "small-batch": "small, BatchNorm",
    "small-group": "small, GroupNorm",
    "small-none": "small, no norm",
}


def title(network: str) -> str:
    return TITLES.get(network, network)


def of_networks(rows: list[Row]) -> list[Row]:
    """Rows of the real networks; the small classifiers have tables of their own."""
    return [r for r in rows if not is_small(r)]


def is_small(row: Row) -> bool:
    return str(row["network"]).startswith("small")


def brief(rows: list[Row], names: Iterable[str]) -> str:
    """Of the named estimators: median Spearman correlation, and the median price of a refresh."""
    scores = [r for r in rows if "spearman" in r]
    networks = _all(r["network"] for r in scores)
    heads = [*map(title, networks), "a refresh costs"]
    lines = [_line("estimator", heads), _rule(heads)]
    for name in names:
        mine = [r for r in scores if r["estimator"] == name]
        cells = [_median([r["spearman"] for r in mine if r["network"] == n]) for n in networks]
        added = [r["added_steps"][name] for r in rows if name in r.get("added_steps", ())]
        cost = statistics.median(added)
        cells.append(f"{cost:.1f} steps" if cost >= 0.05 else "nothing measurable")
        lines.append(_line(name, cells))
    return "\n".join(lines)


def agreement(rows: list[Row]) -> str:
    """Median Spearman correlation and range over seeds, stages and data."""
    return _by_network([r for r in rows if "spearman" in r], _spearman)


def overlap(rows: list[Row]) -> str:
    """Likewise the share of the true top 20 % among the estimated top 20 %."""
    return _by_network([r for r in rows if "spearman" in r], _overlap)


def by_stage(rows: list[Row]) -> str:
    """Median Spearman correlation over seeds, by stage of the training."""
    scores = [r for r in of_networks(rows) if "spearman" in r]
    stages = _all((r["network"], r["stage"]) for r in scores)
    heads = [f"{title(network)}: {stage}" for network, stage in stages]
    lines = [_line("estimator", heads), _rule(heads)]
    for name in _all(r["estimator"] for r in scores):
        mine = [r for r in scores if r["estimator"] == name]
        lines.append(_line(name, [
            _median([r["spearman"] for r in mine if (r["network"], r["stage"]) == key])
            for key in stages
        ]))  # fmt: skip
    return "\n".join(lines)


def judged(rows: list[Row]) -> str:
    """What was judged: networks down; data, rows removed, and the plain step."""
    heads = ["data", "rows removed of all", "images", "a plain step", "its memory"]
    lines = [_line("network", heads), _rule(heads)]
    for r in (r for r in rows if "added_steps" in r):
        mine = [s for s in rows if s["network"] == r["network"] and "removed" in s]
        removed = sorted(s["removed"] for s in mine)
        few = f"{removed[0]} to " if removed[0] < removed[-1] else ""
        lines.append(_line(title(r["network"]), [
            ", ".join(_all(s["data"] for s in mine)), f"{few}{removed[-1]} of {mine[0]['of']}",
            str(r["images"]), f"{1e3 * r['step_seconds']:.0f} ms",
            f"{r['step_bytes'] / 2**20:.0f} MiB",
        ]))  # fmt: skip
    return "\n".join(lines)


def price(rows: list[Row]) -> str:
    """What a refresh adds to a step: time and peak memory."""
    costs = {r["network"]: r for r in of_networks(rows) if "added_steps" in r}
    heads = [f"{title(n)}: time | memory" for n in costs]
    lines = [_line("estimator", heads), "| --- " * (1 + 2 * len(costs)) + "|"]
    for name in _all(name for r in costs.values() for name in r["added_steps"]):
        cells = []
        for r in costs.values():
            time, memory = r["added_steps"].get(name), r["added_memory"].get(name)
            cells += ["", ""] if time is None else [f"{time:+.2f} steps", f"{100 * memory:+.0f} %"]
        lines.append(_line(name, cells))
    return "\n".join(lines)


def _by_network(scores: list[Row], cell: Callable[[list[Row]], str]) -> str:
    networks = _all(r["network"] for r in scores)
    heads = [title(n) for n in networks]
    lines = [_line("estimator", heads), _rule(heads)]
    for name in _all(r["estimator"] for r in scores):
        mine = [r for r in scores if r["estimator"] == name]
        cells = [cell([r for r in mine if r["network"] == network]) for network in networks]
        lines.append(_line(name, cells))
    return "\n".join(lines)


def _all(values: Iterable[Any]) -> list[Any]:
    """Each once, in the order in which they first come."""
    return list(dict.fromkeys(values))


def _line(name: str, cells: list[str]) -> str:
    return f"| {name} | {' | '.join(cells)} |"


def _rule(heads: list[str]) -> str:
    return "| --- " * (1 + len(heads)) + "|"


def _spearman(rows: list[Row]) -> str:
    values = [r["spearman"] for r in rows]
    spread = f" ({min(values):.2f} to {max(values):.2f})" if values else ""
    return _median(values) + spread


def _overlap(rows: list[Row]) -> str:
    return f"{100 * statistics.median(r['top_overlap'] for r in rows):.0f} %" if rows else ""


def _median(values: list[float]) -> str:
    """Empty for an estimator that a network does not allow."""
    return f"{statistics.median(values):.2f}" if values else ""
