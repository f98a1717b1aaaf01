"""Triton: Eq. 3-5. S moves on, moments of every group of rows, R of every row of a layer."""

# mypy: allow-untyped-defs

import triton
import triton.language as tl

from .rows import CHANNELS, FIRST_ROW

# Columns of a table of groups of rows: first row, channels, first unit, units.
GROUP = tl.constexpr(4)
# Of a unit, for E and for S: how many values are known, their mean, the squares of what they
# deviate from it by, and the largest magnitude. Of a group, for either: mean and std.
MOMENTS_OF_UNIT = tl.constexpr(4)
EPS = tl.constexpr(2.0**-23)  # of float32


@triton.jit
def values_of(first, channels, begin, rows, N: tl.constexpr):
    """Where N values of consecutive rows are in (2, rows), and whether they exist."""
    at = begin + tl.arange(0, N)  # rgb, then infrared
    is_ir = at >= channels
    return first + at + tl.where(is_ir, rows - channels, 0), at < 2 * channels


@triton.jit
def moments_of(out, x, known):
    """The four moments of the values x (N,) float64 that are known."""
    n = tl.sum(tl.where(known, 1.0, 0.0).to(tl.float64), 0)
    mean = tl.sum(tl.where(known, x, 0.0), 0) / tl.maximum(n, 1.0)
    d = tl.where(known, x - mean, 0.0)
    tl.store(out, n)
    tl.store(out + 1, mean)
    tl.store(out + 2, tl.sum(d * d, 0))
    tl.store(out + 3, tl.max(tl.where(known, tl.abs(x), 0.0), 0))


@triton.jit
def pool(moments, units, out, M: tl.constexpr):
    """Mean and std of a group from the moments of its units, in a fixed order."""
    n = tl.full((), 0, tl.float64)
    total = tl.full((), 0, tl.float64)
    top = tl.full((), 0, tl.float64)
    for start in range(0, units, M):
        unit = start + tl.arange(0, M)
        at, there = moments + unit * 2 * MOMENTS_OF_UNIT, unit < units
        n_u = tl.load(at, mask=there, other=0, cache_modifier=".cg")
        n += tl.sum(n_u, 0)
        mean_u = tl.load(at + 1, mask=there, other=0, cache_modifier=".cg")
        total += tl.sum(n_u * mean_u, 0)
        top_u = tl.load(at + 3, mask=there, other=0, cache_modifier=".cg")
        top = tl.maximum(top, tl.max(top_u, 0))
    mean = total / tl.maximum(n, 1.0)
    squares = tl.full((), 0, tl.float64)
    for start in range(0, units, M):
        unit = start + tl.arange(0, M)
        at, there = moments + unit * 2 * MOMENTS_OF_UNIT, unit < units
        n_u = tl.load(at, mask=there, other=0, cache_modifier=".cg")
        mean_u = tl.load(at + 1, mask=there, other=0, cache_modifier=".cg")
        squares_u = tl.load(at + 2, mask=there, other=0, cache_modifier=".cg")
        squares += tl.sum(squares_u + n_u * (mean_u - mean) * (mean_u - mean), 0)
    std = tl.sqrt(squares / tl.maximum(n, 1.0))
    # no spread: every deviation is 0 of an infinite std
    spread = std > top * (4 * EPS)  # the tensor first: the interpreter asks for it
    tl.store(out, mean)
    tl.store(out + 1, tl.where(spread, std, float("inf")))


@triton.jit
def normalised(x, known, moments):
    """Eq. 3; 1/2 for what is not known."""
    mean = tl.load(moments, cache_modifier=".cg")
    std = tl.load(moments + 1, cache_modifier=".cg")
    return 1 / (1 + tl.exp(-tl.where(known, (x - mean) / std, 0.0)))


@triton.jit
def is_finite(x):
    return tl.abs(x) < float("inf")


# Functions of their own (noinline) keep their registers to themselves.
@triton.jit(noinline=True)
def moments_of_unit(
    group, unit, moments, deviation, observed, effect, by_effect, alpha, steps, score, rows,
    N: tl.constexpr,
):  # fmt: skip
    """Eq. 4 for the N values of a unit of a group, and their moments."""
    channels = tl.load(group + 1)
    at, there = values_of(tl.load(group), channels, unit * N, rows, N)
    seen = tl.load(observed + at, mask=there, other=0) != 0
    mine = moments + (tl.load(group + 2) + unit) * 2 * MOMENTS_OF_UNIT
    s = tl.load(score + at, mask=there, other=0)
    before = tl.load(steps + at, mask=there, other=0)
    d = tl.load(deviation + at, mask=there, other=0)
    d = tl.where(before > 0, d, 0.0)  # none without a history
    s = tl.where(seen, alpha * s + (1 - alpha) * d, s)  # Eq. 4
    tl.store(score + at, s, mask=there)
    tl.store(steps + at, before + tl.where(seen, 1.0, 0.0), mask=there)
    moments_of(mine + MOMENTS_OF_UNIT, s, seen & is_finite(s))
    if by_effect != 0:
        e = tl.load(effect + at, mask=there, other=0)
        moments_of(mine, e, seen & is_finite(e))


@triton.jit(noinline=True)
def pool_group(group, moments, by_effect, out):
    """Mean and std of a group, of E and of S, once the moments of all its units are there."""
    units = tl.load(group + 3)
    first = moments + tl.load(group + 2) * 2 * MOMENTS_OF_UNIT
    if by_effect != 0:
        pool(first, units, out, 256)
    pool(first + MOMENTS_OF_UNIT, units, out + 2, 256)


@triton.jit(noinline=True)
def rate_layer(
    line, pooled, observed, effect, by_effect, by_sensitivity, score, reliability, rows,
    N: tl.constexpr,
):  # fmt: skip
    """R of a layer's rows (Eq. 3, 5), visible to the whole block; their group is pooled."""
    channels = tl.load(line + CHANNELS)
    for begin in range(0, 2 * channels, N):
        at, there = values_of(tl.load(line + FIRST_ROW), channels, begin, rows, N)
        seen = tl.load(observed + at, mask=there, other=0) != 0
        r = tl.full((N,), 1, tl.float64)
        if by_effect != 0:
            e = tl.load(effect + at, mask=there, other=0)
            r *= normalised(e, seen & is_finite(e), pooled)
        if by_sensitivity != 0:
            s = tl.load(score + at, mask=there, other=0, cache_modifier=".cg")
            r *= normalised(s, seen & is_finite(s), pooled + 2)  # Eq. 5
        tl.store(reliability + at, r.to(tl.float32), mask=there)
    tl.debug_barrier()
