"""The tables that README.md makes of the rows of `kernels`."""

from __future__ import annotations

import math
from typing import Any

Row = dict[str, Any]

LABELS = {
    "triton_two_launches": "`triton` in two launches",
    "native_two_launches": "`native` in two launches",
    "loop": "loop over channels",
    "vectorised": "PyTorch, vectorised layer by layer",
    "tuned": "PyTorch, vectorised, conflict rows only",
    "foreach": "PyTorch, `torch._foreach_*`",
    "compiled": "PyTorch, `torch.compile` of the vectorised",
    "pcgrad": "PCGrad on flattened gradients (another method)",
}
MODELS = {
    "resnet50": "ResNet-50",
    "cspdarknet_l": "CSPDarknet-L",
    "convnext_l": "ConvNeXt-L",
    "vit_l": "ViT-L/16",
    "vit_g": "ViT-g/14",
}


def contestants(rows: list[Row]) -> str:
    """All contestants on ResNet-50 twins with 10 % conflicts, the fastest in float32 first."""
    mine = pick(rows, kind="correct", shape="resnet50", conflicts=0.1)
    by_dtype = {d: {r["backend"]: r for r in pick(mine, dtype=d)} for d in dtypes(mine)}
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
            f"| {LABELS.get(name, f'`{name}`')} | {ms(single[name])} | {share(single[name])} "
            f"| {factor(base / seconds)} | {factor(tuned / seconds)} "
            f"| {ms(half[name])} | {share(half[name])} |"
        )
    return "\n".join(lines)


def models(rows: list[Row]) -> str:
    """The first backend of the file on every model: time, and share of the floor's speed."""
    mine = pick(rows, backend=rows[0]["backend"])
    lines = [
        "| backbone | layers | weights | dtype | 0 % conflicts | 10 % | 25 % | whole step, 10 % |",
        "| --- " * 8 + "|",
    ]
    for shape, label in MODELS.items():
        for dtype in dtypes(pick(mine, shape=shape)):  # none of a model that the file lacks
            of = pick(mine, shape=shape, dtype=dtype)
            cells = [cell(of, kind="correct", conflicts=c) for c in (0.0, 0.1, 0.25)]
            cells.append(cell(of, kind="step", conflicts=0.1))
            lines.append(
                f"| {label} | {of[0]['layers']} | {of[0]['weights'] / 1e6:.1f} M | {dtype} "
                f"| {' | '.join(cells)} |"
            )
    return "\n".join(lines)


def growth(rows: list[Row]) -> str:
    """The first backend of the file on the ladder, and the slope of its log-log line so far."""
    ladder = [r for r in pick(rows, backend=rows[0]["backend"]) if r["shape"].startswith("ladder")]
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
        lines.append(f"| {LABELS.get(name, f'`{name}`')} | {' | '.join(cells)} |")
    return "\n".join(lines)


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
