"""The tables of the versions that were tested, from the rows that ``tests.lib.matrix`` wrote."""

from __future__ import annotations

from typing import Any

Row = dict[str, Any]

PACKAGES = ("torch", "triton", "numpy")


def tested(rows: list[Row]) -> str:
    """Versions down; for each kind of tests, how many passed and how many were skipped."""
    kinds = list(rows[0]["tests"])
    heads = [*PACKAGES, "Python", *kinds]
    lines = [f"| {' | '.join(heads)} |", "| --- " * len(heads) + "|"]
    for row in rows:
        cells = [*(row[name] for name in PACKAGES), row["python"]]
        cells += [_outcome(row["tests"][kind]) for kind in kinds]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def brief(rows: list[Row]) -> str:
    """One sentence."""
    versions = ", ".join(f"{row['torch']} (triton {row['triton']})" for row in rows)
    pythons = ", ".join(sorted({row["python"] for row in rows}))
    return f"Tested with torch {versions}, on Python {pythons}."


def _outcome(tests: Row) -> str:
    skipped = sum(tests["skipped"].values())
    return f"{tests['passed']} passed" + (f", {skipped} skipped" if skipped else "")
