"""The texts of `Gate.report` and `Gate.summary`."""

from __future__ import annotations

from collections.abc import Sequence

from ...rows.twins import Twins
from .places import Place


def table(places: Sequence[Sequence[Place]], twins: Twins, limit: int | None) -> str:
    """How many rows have which place, with ``limit`` weights a group (None: all)."""
    groups: dict[str, list[tuple[int, str]]] = {}
    for stream, side, weights in zip(("rgb", "ir"), places, twins.weights, strict=True):
        for l, (place, w) in enumerate(zip(side, weights, strict=True)):
            title = place.title + (f": {place.why}" if place.why else "")
            entry = f"    {stream} weight of pair {l}  ({'×'.join(map(str, w.shape))})"
            groups.setdefault(title, []).append((twins.layout.channels[l], entry))
    lines = []
    for title, entries in sorted(groups.items(), key=lambda g: -sum(n for n, _ in g[1])):
        lines.append(f"{sum(n for n, _ in entries)} rows {title}")
        lines += [entry for _, entry in entries[:limit]]
        more = len(entries) - len(entries[:limit])
        lines += [f"    … {more} more"] * (more > 0)
    return "\n".join(lines)


def counts(places: Sequence[Sequence[Place]], twins: Twins) -> str:
    """As in ``"96 rows read off the gain of a norm, 8 rows by a hook on an activation"``."""
    rows: dict[str, int] = {}
    for side in places:
        for l, place in enumerate(side):
            text = place.summary + (f" ({place.why})" if place.why else "")
            rows[text] = rows.get(text, 0) + twins.layout.channels[l]
    most_first = sorted(rows.items(), key=lambda entry: -entry[1])
    return ", ".join(f"{n:,} rows {text}" for text, n in most_first)
