"""The tables that docs/ makes of the rows of `effectiveness` over networks."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

Row = dict[str, Any]


def of_networks(rows: list[Row]) -> list[Row]:
    """Rows of the real networks; the small classifiers have tables of their own."""
    return [r for r in rows if not is_small(r)]


def is_small(row: Row) -> bool:
    return str(row.get("network", "small")).startswith("small")


def agreement(rows: list[Row]) -> str:
    """Median Spearman correlation and range over seeds and stages; networks across."""
    return _by_network([r for r in rows if "spearman" in r], _spearman)


def overlap(rows: list[Row]) -> str:
    """Likewise the share of the true top 20 % among the estimated top 20 %."""
    return _by_network([r for r in rows if "spearman" in r], _overlap)


def by_stage(rows: list[Row]) -> str:
    """Median Spearman correlation over seeds: network and stage down, estimators across."""
    scores = [r for r in of_networks(rows) if "spearman" in r]
    names = list(dict.fromkeys(r["estimator"] for r in scores))
    lines = ["| network | data | stage | rows removed | " + " | ".join(names) + " |"]
    lines.append("| --- " * (4 + len(names)) + "|")
    for key in dict.fromkeys((r["network"], r["data"], r["stage"]) for r in scores):
        group = [r for r in scores if (r["network"], r["data"], r["stage"]) == key]
        few, many, of = (f([r[k] for r in group]) for f, k in
                         ((min, "removed"), (max, "removed"), (max, "of")))  # fmt: skip
        removed = f"{many} of {of}" if few == many else f"{few} to {many} of {of}"
        cells = [_median([r["spearman"] for r in group if r["estimator"] == n]) for n in names]
        lines.append(f"| {' | '.join(key)} | {removed} | {' | '.join(cells)} |")
    return "\n".join(lines)


def price(rows: list[Row]) -> str:
    """What a refresh adds to a step, time and peak memory: estimators down, networks across."""
    costs = {r["network"]: r for r in of_networks(rows) if "added_steps" in r}
    lines = ["| estimator | " + " | ".join(f"{n}: time | memory" for n in costs) + " |"]
    lines.append("| --- " * (1 + 2 * len(costs)) + "|")
    for name in dict.fromkeys(name for r in costs.values() for name in r["added_steps"]):
        cells = []
        for r in costs.values():
            time, memory = r["added_steps"].get(name), r["added_memory"].get(name)
            cells += ["", ""] if time is None else [f"{time:+.2f} steps", f"{100 * memory:+.0f} %"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _by_network(scores: list[Row], cell: Callable[[list[Row]], str]) -> str:
    scores = of_networks(scores)
    networks = list(dict.fromkeys(r["network"] for r in scores))
    lines = ["| estimator | " + " | ".join(networks) + " |", "| --- " * (1 + len(networks)) + "|"]
    for name in dict.fromkeys(r["estimator"] for r in scores):
        mine = [r for r in scores if r["estimator"] == name]
        cells = [cell([r for r in mine if r["network"] == network]) for network in networks]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _spearman(rows: list[Row]) -> str:
    values = [r["spearman"] for r in rows]
    spread = f" ({min(values):.2f} to {max(values):.2f})" if values else ""
    return _median(values) + spread


def _overlap(rows: list[Row]) -> str:
    return f"{100 * statistics.median(r['top_overlap'] for r in rows):.0f} %" if rows else ""


def _median(values: list[float]) -> str:
    """Empty for an estimator that a network does not allow."""
    return f"{statistics.median(values):.2f}" if values else ""
