"""The outcome in sentences, for somebody who reads nothing else."""

from __future__ import annotations

from .results import Results
from .statistics import MINUS, Paired, points


def answer(results: Results) -> str:
    """AP of each method, and each difference to the baseline with its interval and verdict."""
    spreads = {m: results.spread(m) for m in (*results.others, results.baseline)}
    measured = [f"{ap} {_with(m, results)}" for m, ap in spreads.items() if ap.n]
    if not measured:
        return "AP was not measured in these runs."
    counts = sorted({ap.n for ap in spreads.values() if ap.n})
    if counts == [1]:
        over = "one seed each" if len(measured) > 1 else "one seed"
    else:
        over = f"mean ± sample standard deviation over {' or '.join(map(str, counts))} seeds"
    listed = " and ".join([", ".join(measured[:-1]), measured[-1]] if measured[1:] else measured)
    text = f"The detector reached an AP of {listed} ({over}). "
    if not results.others:
        return text + "No other method was run, so there is no comparison."
    differences = []
    for method in results.others:
        pairs = results.paired(method)
        words = results.label(method)
        if pairs.seeds:
            words += f" differs by {points(pairs.spread.mean)} points"
        if len(pairs.seeds) > 1:
            words += f" (95% interval {interval(pairs)})"
        differences.append(f"{words}: {pairs.verdict}")
    return f"{text}Paired by seed, {'; '.join(differences)}."


def limits(results: Results) -> str:
    """What the differences can and cannot show, given their number and their noise."""
    scope = "The result holds for this detector, this data and this length of training."
    pairs = {results.label(method): results.paired(method) for method in results.others}
    if not any(p.seeds for p in pairs.values()):
        return scope
    if not any(len(p.seeds) > 1 for p in pairs.values()):
        return (
            "One seed cannot show a difference: another seed alone changes AP, often by more than "
            f"a method does. Train at least three (--seeds 0 1 2). {scope}"
        )
    blind = "".join(
        f"For {label}, {len(p.seeds)} seeds cannot tell a difference below "
        f"{100 * p.margin:.1f} points from noise. "
        for label, p in pairs.items()
        if p.margin > 0
    )
    return (
        f"{blind}An interval that contains 0 does not show that two methods are equal: the true "
        f"difference may be anywhere in it. More seeds make it narrower. {scope}"
    )


def interval(pairs: Paired) -> str:
    """The 95% interval in points: "-1.5 to +3.5"."""
    low, high = pairs.interval
    return f"{points(low)} to {points(high)}"


def difference_name(method: str, results: Results) -> str:
    """What is subtracted from what: "RaGrad - no correction"."""
    other = "no correction" if results.baseline == "none" else results.label(results.baseline)
    return f"{results.label(method)} {MINUS} {other}"


def _with(method: str, results: Results) -> str:
    return "without correction" if method == "none" else f"with {results.label(method)}"
