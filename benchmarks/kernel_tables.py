"""The tables of kernel timings, from the rows that `kernels` wrote."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from .peers import PEERS
from .shapes import MODELS

Row = dict[str, Any]


def label(name: str) -> str:
    """A contestant as the tables call it: a peer by its label, a backend by its name."""
    return PEERS[name].label if name in PEERS else f"`{name}`"


def contestants(rows: list[Row]) -> str:
    """All contestants on ResNet-50 twins with 10 % conflicts, the fastest in float32 first."""
    by_dtype = _on_resnet50(rows)
    single, half = by_dtype["float32"], by_dtype["bfloat16"]
    base, tuned = single["vectorised"]["median_s"], single["tuned"]["median_s"]
    lines = [
        "| | float32 | of the floor's speed | faster than vectorised | than conflict rows only "
        "| bfloat16 | of the floor's speed |",
        "| --- " * 7 + "|",
    ]
    for name in sorted(single, key=lambda n: single[n]["median_s"]):
        seconds = single[name]["median_s"]
        lines.append(
            f"| {label(name)} | {ms(single[name])} | {share(single[name])} "
            f"| {factor(base / seconds)} | {factor(tuned / seconds)} "
            f"| {ms(half[name])} | {share(half[name])} |"
        )
    return "\n".join(lines)


def brief(rows: list[Row], names: Iterable[str]) -> str:
    """The named contestants of the same table: time, and share of the floor's speed."""
    by_dtype = _on_resnet50(rows)
    heads = [f"{dtype} | of the floor's speed" for dtype in by_dtype]
    lines = [f"| | {' | '.join(heads)} |", "| --- " * (1 + 2 * len(heads)) + "|"]
    for name in names:
        mine = [found[name] for found in by_dtype.values()]
        lines.append(f"| {label(name)} | {' | '.join(f'{ms(r)} | {share(r)}' for r in mine)} |")
    return "\n".join(lines)


def models(rows: list[Row], backend: str) -> str:
    """One backend on every model: time, and share of the floor's speed."""
    mine = pick(rows, backend=backend)
    lines = [
        "| backbone | layers | weights | dtype | 0 % conflicts | 10 % | 25 % | whole step, 10 % |",
        "| --- " * 8 + "|",
    ]
    for shape, model in MODELS.items():
        for dtype in dtypes(pick(mine, shape=shape)):  # none of a model that the file lacks
            of = pick(mine, shape=shape, dtype=dtype)
            cells = [cell(of, kind="correct", conflicts=c) for c in (0.0, 0.1, 0.25)]
            cells.append(cell(of, kind="step", conflicts=0.1))
            lines.append(
                f"| {model.label} | {of[0]['layers']} | {of[0]['weights'] / 1e6:.1f} M | {dtype} "
                f"| {' | '.join(cells)} |"
            )
    return "\n".join(lines)


def growth(rows: list[Row], backend: str) -> str:
    """One backend on the ladder of sizes, and the slope of its log-log line so far."""
    ladder = [r for r in pick(rows, backend=backend) if r["shape"].startswith("ladder")]
    lines = ["| weights | layers | float32, 10 % | slope |", "| --- | --- | --- | --- |"]
    for row in ladder:
        slope = f"{row['slope']:.3f}" if "slope" in row else ""
        lines.append(
            f"| {row['weights'] / 2**20:.0f} Mi | {row['layers']} | {ms(row)}, {share(row)} "
            f"| {slope} |"
        )
    return "\n".join(lines)


def host(rows: list[Row]) -> str:
    """What a call costs whatever the size of its layers, in microseconds."""
    mine = [r for r in pick(rows, kind="correct") if r["shape"].startswith("tiny")]
    shapes = list(dict.fromkeys(r["shape"] for r in mine))
    layers = [pick(mine, shape=s)[0]["layers"] for s in shapes]
    lines = ["| | " + " | ".join(f"{n} layers" for n in layers) + " |"]
    lines.append("| --- " * (1 + len(shapes)) + "|")
    for name in dict.fromkeys(r["backend"] for r in mine):
        found = [pick(mine, backend=name, shape=s) for s in shapes]
        cells = [f"{f[0]['host_us']:,.0f} µs" if f else "" for f in found]
        lines.append(f"| {label(name)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _on_resnet50(rows: list[Row]) -> dict[str, dict[str, Row]]:
    """By dtype and contestant: a correction of ResNet-50 twins with 10 % conflicts."""
    mine = pick(rows, kind="correct", shape="resnet50", conflicts=0.1)
    return {d: {r["backend"]: r for r in pick(mine, dtype=d)} for d in dtypes(mine)}


def pick(rows: list[Row], **wanted: object) -> list[Row]:
    return [r for r in rows if all(r[k] == v for k, v in wanted.items())]


def dtypes(rows: list[Row]) -> list[str]:
    return list(dict.fromkeys(r["dtype"] for r in rows))


def cell(rows: list[Row], **wanted: object) -> str:
    """Time and share of the one row that is wanted; empty if it was not measured."""
    return "".join(f"{ms(r)}, {share(r)}" for r in pick(rows, **wanted))


def ms(row: Row) -> str:
    """Milliseconds: three digits, or all before the point."""
    x = 1e3 * row["median_s"]
    return f"{x:.{max(0, 2 - math.floor(math.log10(x)))}f} ms"


def share(row: Row) -> str:
    x = 100 * row["share_of_floor"]
    return f"{x:.0f} %" if x >= 1 else f"{x:.1g} %"


def factor(x: float) -> str:
    return f"{x:.0f}x" if x >= 10 else f"{x:.2g}x"
