"""Write the tables of README.md and docs/, and the plots, from the result files.

Each table is between ``<!-- table: NAME -->`` and ``<!-- end -->``. With ``--check`` nothing
is written; the exit code says whether every table is what its result file says. (Plots are not
compared: another matplotlib draws the same picture in other bytes.)
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import (
    effectiveness_plot,
    effectiveness_tables,
    kernel_tables,
    plots,
    rule_tables,
    training_tables,
    version_tables,
)

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PLOT = ROOT / "docs" / "kernels.svg"
FRONTIER = ROOT / "docs" / "effectiveness.svg"
PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    "docs/costs.md",
    "docs/effectiveness.md",
    "docs/findings.md",
)
BLOCK = re.compile(r"(<!-- table: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def gates() -> str:
    """Median Spearman correlation over seeds: what follows a row, by the place of its gate."""
    found = rows("gates")
    names = ["row", "gain", "norm", "activation", "Gate"]
    lines = ["| after the row | epochs | " + " | ".join(names) + " |"]
    lines.append("| --- " * (2 + len(names)) + "|")
    for kind, epochs in dict.fromkeys((r["kind"], r["epochs"]) for r in found):
        group = [r["spearman"] for r in found if (r["kind"], r["epochs"]) == (kind, epochs)]
        medians = [two(statistics.median(scores[n] for scores in group)) for n in names]
        lines.append(f"| {kind} | {epochs} | {' | '.join(medians)} |")
    return "\n".join(lines)


def msrs() -> str:
    runs = msrs_runs()
    return training_tables.average_precision(runs["no correction"], runs["Gate"])


def msrs_runs() -> dict[str, list[dict[str, Any]]]:
    """The runs on MSRS by what was varied; the first two are of `ragrad_ext compare` as it is."""
    runs = load("msrs")["runs"] + load("msrs_more")["runs"]
    return {
        "no correction": [r for r in runs if r["method"] == "none"],
        "Gate": [r for r in runs if r["method"] == "ragrad"],
        "the paper's estimate": load("msrs_paper")["runs"],
        "sensitivity alone": load("msrs_sensitivity")["runs"],
        "Gate, normalised by layer": load("msrs_layer")["runs"],
    }


# The rows of the short tables in README.md.
ESTIMATORS = ("Gate", "FirstOrder", "Hutchinson, 16 probes", "FiniteDifference, 16 probes")
CONTESTANTS = ("native", "compiled", "tuned", "loop")
VARIANTS = ("no correction", "Gate", "the paper's estimate", "Gate, normalised by layer")
OVERHEADS = ("RaGrad", "RaGrad, without sensitivity")


TABLES: dict[str, Callable[[], str]] = {
    "gates": gates,
    "effectiveness-brief": lambda: effectiveness_tables.brief(real_networks(), ESTIMATORS),
    "effectiveness-judged": lambda: effectiveness_tables.judged(judged()),
    "effectiveness-networks": lambda: effectiveness_tables.agreement(judged()),
    "effectiveness-overlap": lambda: effectiveness_tables.overlap(judged()),
    "effectiveness-stages": lambda: effectiveness_tables.by_stage(judged()),
    "effectiveness-price": lambda: effectiveness_tables.price(judged()),
    "degraded": lambda: training_tables.degraded(rows("degraded")),
    "degraded-depth": lambda: training_tables.degraded_by_depth(rows("degraded")),
    "overhead": lambda: training_tables.overhead(overheads()),
    "overhead-brief": lambda: training_tables.overhead(overheads(), OVERHEADS),
    "classify": lambda: training_tables.classify(rows("classify")),
    "msrs": msrs,
    "msrs-variants": lambda: training_tables.variants(msrs_runs()),
    "msrs-brief": lambda: training_tables.variants_brief(msrs_runs(), VARIANTS),
    "kernels": lambda: kernel_tables.contestants(rows("kernels_cpu")),
    "kernels-brief": lambda: kernel_tables.brief(rows("kernels_cpu"), CONTESTANTS),
    "kernels-models": lambda: kernel_tables.models(rows("kernels_cpu"), "native"),
    "kernels-again": lambda: kernel_tables.models(rows("kernels_cpu_resnet50"), "native"),
    "kernels-growth": lambda: kernel_tables.growth(rows("kernels_cpu"), "native"),
    "versions": lambda: version_tables.sentence(rows("versions")),
    "versions-tests": lambda: version_tables.tests(rows("versions")),
    "rules": lambda: rule_tables.rules(rows("rules_cpu")),
    "versus": lambda: rule_tables.versus(rows("versus_cpu")),
    "kernels-host": lambda: kernel_tables.host(rows("kernels_cpu_host")),
}
# One command each, so that they can run side by side.
JUDGED = (
    "resnet18_batch",
    "resnet18_group",
    "resnet18_group_price",  # again, since Gate's hooks there were rewritten
    "fasterrcnn",
    "vit",  # and the small ones
)


def judged() -> list[dict[str, Any]]:
    """All rows; of each network the price that was measured last."""
    found = [row for name in JUDGED for row in rows(f"effectiveness_{name}")]
    prices = {row["network"]: row for row in found if "added_steps" in row}
    return [row for row in found if "added_steps" not in row or row is prices[row["network"]]]


def real_networks() -> list[dict[str, Any]]:
    return effectiveness_tables.of_networks(judged())


def overheads() -> list[dict[str, Any]]:
    return rows("overhead") + rows("overhead_1024")


def rows(name: str) -> list[dict[str, Any]]:
    return list(load(name)["rows"])


def load(name: str) -> dict[str, Any]:
    return dict(json.loads((RESULTS / f"{name}.json").read_text()))


def two(x: float) -> str:
    return f"{x:.2f}"


def rewritten(text: str) -> str:
    """A page with every table made again."""
    return BLOCK.sub(lambda m: f"{m[1]}{TABLES[m[2]]()}\n{m[3]}", text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing, compare")
    stale = []
    check = parser.parse_args().check
    for page in (ROOT / name for name in PAGES):
        old = page.read_text()
        new = rewritten(old)
        if new != old:
            stale.append(page.name)
            if not check:
                page.write_text(new)
    if not check:
        plots.kernels(rows("kernels_cpu"), PLOT, "native")
        effectiveness_plot.frontier(judged(), FRONTIER)
    if stale:
        print(f"{'stale' if check else 'rewritten'}: {', '.join(stale)}")
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
