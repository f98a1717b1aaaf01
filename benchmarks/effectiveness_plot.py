"""The frontier: how well each estimator orders channels, against what a refresh costs.

The same rows and the same matplotlib give the same bytes.
"""

from __future__ import annotations

import math
import statistics
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .effectiveness_tables import Row, of_networks, title

DEFAULT, OTHER, FRONTIER = "#e0700f", "#6482a6", "#1b2430"
LEAST = 0.05  # steps: what one step differs from the next by, and more
WIDTH, LINE = 1.3, 0.035  # of a name in its panel: decades, and Spearman


def frontier(rows: list[Row], path: Path) -> None:
    """One panel a network; the line joins the estimators that no cheaper one equals."""
    rows = of_networks(rows)
    costs = {r["network"]: r["added_steps"] for r in rows if "added_steps" in r}
    with matplotlib.rc_context({"svg.hashsalt": "effectiveness", "font.size": 8}):
        across, down = min(2, len(costs)), -(-len(costs) // 2)
        figure = Figure(figsize=(5 * across, 3.5 * down), layout="constrained")
        grid = figure.subplots(down, across, sharey=True, squeeze=False)
        for axes in grid.flat[len(costs) :]:
            axes.set_axis_off()
        for axes, (network, added) in zip(grid.flat, costs.items(), strict=False):
            scores = {
                name: statistics.median(
                    r["spearman"] for r in rows
                    if r.get("estimator") == name and r["network"] == network
                )
                for name in added
            }  # fmt: skip
            _panel(axes, network, {n: max(a, LEAST) for n, a in added.items()}, scores)
        for left in grid[:, 0]:
            left.set_ylabel("Spearman with Eq. 1, median")
        figure.savefig(path, metadata={"Date": None})


def _panel(axes: Axes, network: str, added: dict[str, float], scores: dict[str, float]) -> None:
    heights = label_heights(added, scores)
    for name in added:
        colour, place = DEFAULT if name == "Gate" else OTHER, (added[name], scores[name])
        axes.plot(*place, "o", color=colour, markersize=4)
        axes.annotate(
            name, place, (1.25 * added[name], heights[name]), color=colour, fontsize=5, va="center",
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.3},
        )  # fmt: skip
    axes.update_datalim([(added[name], height) for name, height in heights.items()])
    best = frontier_of(added, scores)
    x, y = [added[n] for n in best], [scores[n] for n in best]
    axes.step(x, y, where="post", color=FRONTIER, linewidth=0.8)
    axes.set(xscale="log", xlabel=f"a refresh adds, in steps (at least {LEAST})")
    axes.set_xlim(right=20 * max(added.values()))  # room for the names
    axes.set_title(title(network), loc="left")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def label_heights(added: dict[str, float], scores: dict[str, float]) -> dict[str, float]:
    """How high each name is written: beside its point, or below names that it would hide."""
    heights: dict[str, float] = {}
    for name in sorted(added, key=lambda n: -scores[n]):
        near = [h for n, h in heights.items() if abs(math.log10(added[name] / added[n])) < WIDTH]
        heights[name] = min([scores[name], *(h - LINE for h in near)])
    return heights


def frontier_of(added: dict[str, float], scores: dict[str, float]) -> list[str]:
    """Names from cheap to dear, each better than all that cost no more."""
    best: list[str] = []
    for name in sorted(added, key=lambda n: (added[n], -scores[n])):
        if not best or scores[name] > scores[best[-1]]:
            best.append(name)
    return best
