"""The tables of docs/costs.md on rules, and on this version against an earlier one."""

from __future__ import annotations

from statistics import median
from typing import Any

from .shapes import MODELS

Row = dict[str, Any]

LABELS = {
    "ragrad": "RaGrad, fused",
    "ragrad, unfused": "RaGrad, verb after verb",
    "pcgrad": "PCGrad*",
    "imtl": "IMTL*",
}


def rules(rows: list[Row]) -> str:
    """One line per model and rule: `native`, and how many times faster than TorchJD it is."""
    heads = ["backbone", "rule"]
    for dtype in ("float32", "bfloat16"):
        heads += [f"{dtype}: `native`", "of the floor's speed", "TorchJD", "faster"]
    lines = [f"| {' | '.join(heads)} |", "| --- " * len(heads) + "|"]
    for shape in dict.fromkeys(r["shape"] for r in rows):
        for rule, label in LABELS.items():
            cells = [MODELS[shape].label, label]
            for dtype in ("float32", "bfloat16"):
                found = {
                    r["backend"]: r
                    for r in rows
                    if (r["shape"], r["rule"], r["dtype"]) == (shape, rule, dtype)
                }
                cells += _of_one_dtype(found)
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _of_one_dtype(found: dict[str, Row]) -> list[str]:
    mine, peer = found["native"], found.get("torchjd")
    cells = [milliseconds(mine["median_s"]), f"{100 * mine['share_of_floor']:.0f} %"]
    if peer is None:
        return [*cells, "", ""]
    return [*cells, milliseconds(peer["median_s"]), f"{peer['median_s'] / mine['median_s']:.0f}x"]


def versus(rows: list[Row]) -> str:
    """One line per kind and shape: this version's time as a share of the earlier one's."""
    heads = ["call", "shapes", "cases", "this / earlier, median", "smallest", "largest"]
    lines = [f"| {' | '.join(heads)} |", "| --- " * len(heads) + "|"]
    for kind in dict.fromkeys(r["kind"] for r in rows):
        for group in ("models", "ladder", "tiny"):
            ratios = [r["median_of_ratios"] for r in rows if r["kind"] == kind if of(r) == group]
            if ratios:
                numbers = f"{median(ratios):.3f} | {min(ratios):.3f} | {max(ratios):.3f}"
                lines.append(f"| {kind} | {group} | {len(ratios)} | {numbers} |")
    return "\n".join(lines)


def of(row: Row) -> str:
    """Which group of shapes a row belongs to."""
    return "models" if row["shape"] in MODELS else row["shape"].partition("_")[0]


def milliseconds(seconds: float) -> str:
    """Three digits."""
    return f"{1e3 * seconds:.{0 if seconds >= 0.1 else 1 if seconds >= 0.01 else 2}f} ms"
