"""What the pages say of tested versions, from the rows that ``tests.lib.matrix`` wrote."""

from __future__ import annotations

from typing import Any

Row = dict[str, Any]

PACKAGES = ("torch", "triton", "numpy")


def tests(rows: list[Row]) -> str:
    """Versions down; for each kind of tests, how many passed and how many were skipped."""
    kinds = list(rows[0]["tests"])
    heads = [*PACKAGES, "Python", *kinds]
    lines = [f"| {' | '.join(heads)} |", "| --- " * len(heads) + "|"]
    for row in rows:
        cells = [*(row[name] for name in PACKAGES), row["python"]]
        cells += [_outcome(row["tests"][kind]) for kind in kinds]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def sentence(rows: list[Row]) -> str:
    """The versions that `make matrix` tested, oldest first."""
    pythons = ", ".join(dict.fromkeys(row["python"] for row in rows))
    beside = [f"torch {r['torch']} (triton {r['triton']}, numpy {r['numpy']})" for r in rows]
    return (
        f"`make matrix` tested one wheel on Python {pythons} beside {', '.join(beside[:-1])} and "
        f"{beside[-1]}, {rows[-1]['date']}."
    )


def _outcome(tests: Row) -> str:
    skipped = sum(tests["skipped"].values())
    return f"{tests['passed']} passed" + (f", {skipped} skipped" if skipped else "")
