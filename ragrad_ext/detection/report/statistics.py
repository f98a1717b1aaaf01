"""What a few seeds can tell: mean and spread, paired differences and their intervals."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from statistics import fmean, stdev
from typing import NamedTuple

from scipy.special import stdtrit  # Student's t

MINUS = "\u2212"


class Spread(NamedTuple):
    """Mean and sample standard deviation over n seeds; nan where n is too small for them."""

    mean: float
    std: float
    n: int

    def __str__(self) -> str:
        if not self.n:
            return "–"
        return f"{self.mean:.3f}" + (f" ± {self.std:.3f}" if self.n > 1 else "")


def spread(values: Iterable[float]) -> Spread:
    """Over the finite values: AP is nan where a condition holds no object."""
    finite = [v for v in values if math.isfinite(v)]
    mean = fmean(finite) if finite else math.nan
    return Spread(mean, stdev(finite) if len(finite) > 1 else math.nan, len(finite))


class Paired(NamedTuple):
    """Differences of two methods, seed by seed: seeds and differences, in the order of seeds."""

    seeds: tuple[int, ...]
    differences: tuple[float, ...]

    @property
    def spread(self) -> Spread:
        return spread(self.differences)

    @property
    def margin(self) -> float:
        """Half the 95% interval of the mean: t(0.975, n - 1) · s / √n; nan for a single seed."""
        _, std, n = self.spread
        return float(stdtrit(n - 1, 0.975)) * std / math.sqrt(n) if n > 1 else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """The 95% confidence interval of the mean difference, if differences are normal."""
        return self.spread.mean - self.margin, self.spread.mean + self.margin

    @property
    def verdict(self) -> str:
        """What the differences show, in words that claim no more."""
        low, high = self.interval
        if not self.seeds:
            return "no seed was run with both, so nothing can be paired"
        if len(self.seeds) == 1:
            return "one seed is not enough; another may reverse the sign"
        if low == high == 0:
            return "the same in every seed"
        if low <= 0 <= high:
            return "within the noise of the seeds"
        return "larger than the noise of the seeds"


def paired(values: Mapping[int, float], baseline: Mapping[int, float]) -> Paired:
    """`values` minus `baseline`, over the seeds (keys) with a finite value in both."""
    differences = {s: values[s] - baseline[s] for s in sorted(values.keys() & baseline.keys())}
    finite = {s: d for s, d in differences.items() if math.isfinite(d)}
    return Paired(tuple(finite), tuple(finite.values()))


def points(difference: float) -> str:
    """A difference of AP in points (hundredths), signed: +0.7."""
    if math.isnan(difference):
        return "–"
    text = f"{100 * abs(difference):.1f}"
    sign = "+" if difference > 0 else MINUS
    return text if text == "0.0" else sign + text
