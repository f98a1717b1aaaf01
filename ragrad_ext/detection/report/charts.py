"""The report's charts as inline SVG, drawn by matplotlib without pyplot's global state.

Every colour is a role of `PALETTE`. Charts are drawn in the light colours, which are then replaced
by CSS variables of the same names, so that a chart follows the theme of its page.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import NamedTuple

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

Array = npt.NDArray[np.float64]
Curve = tuple[Array, Array]  # epochs (T,), values (T,)

PALETTE = {  # role: (light, dark); methods and modalities stay apart for colour-blind readers
    "page": ("#f6f7f9", "#11151b"),
    "surface": ("#fefefe", "#191f27"),
    "ink": ("#1b2430", "#e6eaf0"),
    "muted": ("#586475", "#9ba7b6"),
    "line": ("#dfe3e9", "#2d3642"),
    "none": ("#6482a6", "#8dabd0"),
    "ragrad": ("#e0700f", "#ff9a3d"),
    "other1": ("#7a5fb5", "#ab93e6"),
    "other2": ("#4f8a3c", "#86c06f"),
    "other3": ("#8a6a4a", "#c6a17c"),
    "rgb": ("#0e8f86", "#35c2b6"),
    "ir": ("#b8387f", "#f07ab8"),
}


class Style(NamedTuple):
    """How a method or a modality looks in every chart: its words, its colour, its shape."""

    label: str
    role: str
    marker: str


RGB = Style("visible (rgb)", "rgb", "o")
IR = Style("infrared (ir)", "ir", "s")
_KNOWN = {"none": Style("No correction", "none", "o"), "ragrad": Style("RaGrad", "ragrad", "D")}
_OTHERS = (("other1", "^"), ("other2", "v"), ("other3", "P"))


def styles(methods: Iterable[str]) -> dict[str, Style]:
    """A fixed style for "none" and "ragrad", the next free one for any other method."""
    others = [m for m in methods if m not in _KNOWN]
    free = {m: Style(m, *_OTHERS[i % len(_OTHERS)]) for i, m in enumerate(others)}
    return {m: _KNOWN.get(m) or free[m] for m in methods}


_WIDTH = 4.3  # inches; the page scales it to the column
_THEME = matplotlib.rc_context(
    {
        "svg.fonttype": "none",
        "svg.hashsalt": "ragrad_ext",  # the same numbers give the same bytes
        "text.parse_math": False,  # a $ in somebody's name is a dollar
        "font.size": 8.2,
        "text.color": PALETTE["ink"][0],
        "axes.labelcolor": PALETTE["muted"][0],
        "axes.edgecolor": PALETTE["line"][0],
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "grid.color": PALETTE["line"][0],
        "grid.linewidth": 0.6,
        "xtick.color": PALETTE["muted"][0],
        "ytick.color": PALETTE["muted"][0],
        "xtick.major.size": 0,
        "ytick.major.size": 0,
        "legend.frameon": False,
        "lines.solid_capstyle": "round",
    }
)


def _colour(style: Style) -> str:
    return PALETTE[style.role][0]


def _axes(height: float, *, left: float = 0.6, top: float = 0.3) -> tuple[Figure, Axes]:
    """A figure of `height` inches with axes in fixed margins, so that neighbours align."""
    figure = Figure(figsize=(_WIDTH, height))
    right, bottom = 0.12, 0.45
    box = (left / _WIDTH, bottom / height, 1 - (left + right) / _WIDTH, 1 - (bottom + top) / height)
    return figure, figure.add_axes(box)


def _legend(axes: Axes) -> None:
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.2, ncols=4, handlelength=1)


def _svg(figure: Figure, description: str) -> str:
    """The figure as an inline <svg>: no XML head, no fixed size, theme colours, described."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    body = svg[svg.index("<g id=") : svg.rindex("</svg>")]
    body = re.sub(r' id="[\w.]+_\d+"', "", body)  # group names: the same in every chart
    body = re.sub(r"font-family: [^;\"]+", "font-family: inherit", body)
    for role, (light, _) in PALETTE.items():
        body = body.replace(light, f"var(--{role})")
    width, height = (72 * inches for inches in figure.get_size_inches())
    label = escape(description, quote=True)
    frame = f'viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{label}"'
    return f'<svg class="chart" {frame}>{body}</svg>'


def mean_curve(curves: Sequence[Curve]) -> Curve:
    """The mean over the epochs that every curve has: beyond them it would jump."""
    shared = sorted(set.intersection(*(set(x.tolist()) for x, _ in curves)))
    values = [
        [dict(zip(x.tolist(), y.tolist(), strict=True))[e] for e in shared] for x, y in curves
    ]
    return np.array(shared), np.mean(values, axis=0)


@_THEME
def lines(series: Sequence[tuple[Style, Sequence[Curve]]], axis: str, description: str) -> str:
    """Curves over epochs: per style a thin line for each seed, and a strong one for their mean."""
    figure, axes = _axes(2.6)
    for style, curves in series:
        colour, seeds = _colour(style), curves if len(curves) > 1 else ()
        for x, y in seeds:
            axes.plot(x, y, color=colour, linewidth=0.7, alpha=0.45)
        x, y = mean_curve(curves)
        shape = style.marker if len(x) <= 15 else ""
        axes.plot(x, y, color=colour, linewidth=1.8, marker=shape, markersize=4, label=style.label)
    axes.set(xlabel="epoch", ylabel=axis)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.margins(x=0.02)
    _legend(axes)
    return _svg(figure, description)


def _rows(names: Sequence[str]) -> tuple[Figure, Axes]:
    """Axes with one named row per entry, the first on top."""
    step = float(np.clip(7.5 / len(names), 0.115, 0.19 if len(names) > 6 else 0.27))  # inches a row
    size = min(7.8, step * 46)  # points: never taller than the row
    left = 0.2 + max(len(n) for n in names) * size * 0.56 / 72
    figure, axes = _axes(0.75 + step * max(len(names), 3), left=min(left, 2.0))
    axes.set_yticks(range(len(names)), names, fontsize=size)
    axes.set_ylim(len(names) - 0.5, -0.5)
    return figure, axes


@_THEME
def dots(
    names: Sequence[str],
    series: Mapping[Style, Array],
    axis: str,
    description: str,
    spread: Mapping[Style, Array] | None = None,
) -> str:
    """One row per name, one mark per style, joined: values (R,); faint ones for `spread` (n, R)."""
    figure, axes = _rows(names)
    rows = np.arange(len(names))
    values = np.stack(list(series.values()))
    axes.hlines(
        rows, values.min(0), values.max(0), color=PALETTE["muted"][0], linewidth=1, alpha=0.5
    )
    for style, many in (spread or {}).items():
        for one in many:
            axes.scatter(one, rows, s=6, color=_colour(style), alpha=0.5, linewidth=0)
    for style, value in series.items():
        points = axes.scatter(value, rows, s=20, color=_colour(style), marker=style.marker)
        points.set(label=style.label, linewidth=0, zorder=3)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5))  # more would run into each other
    axes.set_xlabel(axis)
    _legend(axes)
    return _svg(figure, description)


@_THEME
def heat(names: Sequence[str], epochs: Array, values: Array, axis: str, description: str) -> str:
    """Values (T, R) in [0, 1], dark to bright: one row per name, one column per epoch."""
    figure, axes = _rows(names)
    top = max(float(np.nan_to_num(values).max()), 0.01)
    count = len(epochs)
    axes.grid(visible=False)
    axes.imshow(
        values.T,
        cmap="cividis",
        vmin=0,
        vmax=top,
        aspect="auto",
        interpolation="none",
        extent=(-0.5, count - 0.5, len(names) - 0.5, -0.5),
    )
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
    name = {i: f"{e:g}" for i, e in enumerate(epochs.tolist())}
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: name.get(x, "")))
    axes.set_xlabel("epoch")

    box = axes.get_position()
    height = 0.09 / figure.get_figheight()
    scale = figure.add_axes(
        (box.x1 - 1.2 / _WIDTH, box.y1 + 0.09 / figure.get_figheight(), 0.9 / _WIDTH, height)
    )
    scale.imshow(np.linspace(0, 1, 128)[None], cmap="cividis", aspect="auto", interpolation="none")
    scale.set_axis_off()
    for at, ha, text in ((-0.05, "right", f"{axis}: 0"), (1.05, "left", f"{top:.0%}")):
        scale.text(at, 0.5, text, ha=ha, va="center_baseline", transform=scale.transAxes)
    return _svg(figure, description)
