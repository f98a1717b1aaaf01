"""The plot of docs/costs.md, from the rows of `kernels`. Needs matplotlib.

The same rows and the same matplotlib give the same bytes.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .kernel_tables import Row, dtypes, pick
from .peers import PEERS

BACKEND, PEER, FLOOR = "#e0700f", "#6482a6", "#1b2430"


def kernels(rows: list[Row], path: Path, backend: str) -> None:
    """Time by weights, and times of all contestants on ResNet-50 twins, as an SVG.

    The floor by weights is that of ``backend``, whose bandwidth was measured beside each call.
    """
    with matplotlib.rc_context({"svg.hashsalt": "kernels", "font.size": 9}):
        figure = Figure(figsize=(10, 3.8), layout="constrained")
        left, right = figure.subplots(1, 2)
        _growth(left, [r for r in rows if r["shape"].startswith("ladder")], backend)
        _contestants(right, pick(rows, kind="correct", shape="resnet50", conflicts=0.1))
        figure.savefig(path, metadata={"Date": None})


def _growth(axes: Axes, ladder: list[Row], backend: str) -> None:
    largest = max(r["weights"] for r in ladder)
    for name in [r["backend"] for r in pick(ladder, weights=largest)]:
        mine = pick(ladder, backend=name)
        x, y = [r["weights"] for r in mine], [r["median_s"] for r in mine]
        axes.plot(x, y, "o-", color=_colour(name), markersize=3, linewidth=1.2)
        axes.annotate(f" {name}", (x[-1], y[-1]), va="center", color=_colour(name))
    best = pick(ladder, backend=backend)
    floor = [r["floor_bytes"] / r["bandwidth"] for r in best]
    axes.plot([r["weights"] for r in best], floor, "--", color=FLOOR, linewidth=1, label="floor")
    axes.set(xscale="log", yscale="log", xlabel="weights a side", ylabel="seconds a call")
    axes.set_xlim(right=12 * largest)  # room for the names
    axes.set_title("Cost by size, float32, 10 % conflicts", loc="left")
    axes.legend(frameon=False, loc="upper left")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _contestants(axes: Axes, mine: list[Row]) -> None:
    order = sorted(pick(mine, dtype="float32"), key=lambda r: -r["median_s"])
    place = {r["backend"]: i for i, r in enumerate(order)}
    for shift, alpha, dtype in zip((0.2, -0.2), (1.0, 0.5), dtypes(mine), strict=False):
        for row in pick(mine, dtype=dtype):
            y, seconds = place[row["backend"]] + shift, row["median_s"]
            axes.barh(y, seconds, 0.38, color=_colour(row["backend"]), alpha=alpha)
            axes.annotate(f" {1e3 * seconds:.3g} ms", (seconds, y), va="center", fontsize=7)
        axes.barh(0, 0, color=PEER, alpha=alpha, label=dtype)
    floor = order[-1]["floor_bytes"] / order[-1]["bandwidth"]
    axes.axvline(floor, linestyle="--", color=FLOOR, linewidth=1, label="floor, float32")
    axes.set_yticks(range(len(order)), [r["backend"] for r in order])
    axes.set(xscale="log", xlabel="seconds a call")
    axes.set_xlim(floor / 4, 4 * order[0]["median_s"])
    axes.set_title("ResNet-50 twins, 10 % conflicts", loc="left")
    axes.legend(frameon=False, loc="upper right")
    axes.spines[["top", "right"]].set_visible(False)


def _colour(name: str) -> str:
    return PEER if name in PEERS or name == "reference" else BACKEND
