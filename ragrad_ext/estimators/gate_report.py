"""The text of `Gate.report`."""

from __future__ import annotations

from collections.abc import Sequence

from ..twins import Twins
from .gate_places import Place

TITLES = {
    "gain": "behind a norm with statistics of the channel, -gain dL/dgain",
    "norm": "behind such a norm, its gain frozen, absent or shared, by a hook",
    "mixing": "behind a GroupNorm or LayerNorm, by hooks",
    "activation": "behind the first activation, by a hook",
    "row": "at their own output, -g.theta",
}


def table(places: Sequence[Sequence[Place]], twins: Twins, limit: int | None) -> str:
    """How many rows have their gate where, with ``limit`` weights a group (None: all)."""
    groups: dict[str, list[tuple[int, str]]] = {}
    for stream, side, weights in zip(("rgb", "ir"), places, twins.weights, strict=True):
        for l, (place, w) in enumerate(zip(side, weights, strict=True)):
            title = TITLES[place.kind] + (f": {place.why}" if place.why else "")
            entry = f"    {stream} weight of pair {l}  ({'×'.join(map(str, w.shape))})"
            groups.setdefault(title, []).append((twins.layout.channels[l], entry))
    lines = []
    for title, entries in sorted(groups.items(), key=lambda g: -sum(n for n, _ in g[1])):
        lines.append(f"{sum(n for n, _ in entries)} rows {title}")
        lines += [entry for _, entry in entries[:limit]]
        more = len(entries) - len(entries[:limit])
        lines += [f"    … {more} more"] * (more > 0)
    return "\n".join(lines)
