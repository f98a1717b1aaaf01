"""Triton: Eq. 6-10 for a layer whose Gram sums and R are there: the matrix of every row."""

# mypy: allow-untyped-defs

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...rows.conflicts import Conflicts
from ...rules.ragrad import RaGradRule
from .rows import CHANNELS, FIRST_ROW


@triton.jit
def load_rows(line, i, there, gram, reliability, rows):
    """Of channels i (N,): |g_rgb|^2, |g_ir|^2, their dot and cosine, and both reliabilities."""
    row = tl.load(line + FIRST_ROW) + i
    aa = tl.load(gram + row * 3, mask=there, other=0, cache_modifier=".cg")
    bb = tl.load(gram + row * 3 + 1, mask=there, other=0, cache_modifier=".cg")
    ab = tl.load(gram + row * 3 + 2, mask=there, other=0, cache_modifier=".cg")
    r_rgb = tl.load(reliability + row, mask=there, other=0).to(tl.float64)
    r_ir = tl.load(reliability + rows + row, mask=there, other=0).to(tl.float64)
    zero = (aa == 0) | (bb == 0)
    # float32: cosines equal but for the last bits of their sums are equal for Eq. 6
    cosine = tl.where(zero, 0.0, ab / tl.sqrt(aa) / tl.sqrt(bb)).to(tl.float32)
    return aa, bb, ab, cosine, r_rgb, r_ir


# A function of its own (noinline) keeps its registers to itself.
@triton.jit(noinline=True)
def decide_layer(line, gram, reliability, rows, rule, record, mix, count_at, N: tl.constexpr):
    """The record of a layer, and the list of its conflict rows in ``mix``.

    Args:
        rule: eps, whether Eq. 6 is dual, whether Eq. 9 and 10 blend.
        record: cosine, gap, mask and strength.
        mix: (rows,) int64 and (rows, 2) float64, both from the layer's first row on. Of every
            conflict row, one after the other: twice its channel, plus one where the infrared side
            is the weak one and changes; and that side's row of M: the shares of its own old row and
            of the other. The other row of M is a unit row.
        count_at: gets how many there are.
    """
    eps, dual, blend = rule
    cosine_out, gap_out, mask_out, strength_out = record
    changes, shares = mix
    channels, first_row = tl.load(line + CHANNELS), tl.load(line + FIRST_ROW)
    negative = tl.full((N,), 0, tl.float64)  # sum of the negative cosines
    negatives = tl.full((N,), 0, tl.float64)  # how many
    gaps = tl.full((N,), 0, tl.float64)
    bad = tl.full((N,), 0, tl.int32)
    for begin in range(0, channels, N):
        i = begin + tl.arange(0, N)
        there = i < channels
        aa, bb, _, cosine, r_rgb, r_ir = load_rows(line, i, there, gram, reliability, rows)
        below = cosine < 0
        negative += tl.where(below, cosine.to(tl.float64), 0.0)
        negatives += tl.where(below, 1.0, 0.0)
        gaps += tl.abs(r_rgb - r_ir)
        finite = (tl.abs(aa) < float("inf")) & (tl.abs(bb) < float("inf"))
        bad += tl.where(finite, 0, 1)
    mean_cosine = tl.sum(negative, 0) / tl.sum(negatives, 0)  # nan without: nothing is below it
    mean_gap = tl.sum(gaps, 0) / channels.to(tl.float64)
    all_finite = tl.sum(bad, 0) == 0
    may_conflict = tl.where(all_finite, channels, 0)  # how many channels

    count = tl.full((), 0, tl.int32)
    for begin in range(0, channels, N):
        i = begin + tl.arange(0, N)
        there = i < channels
        row = first_row + i
        aa, bb, ab, cosine, r_rgb, r_ir = load_rows(line, i, there, gram, reliability, rows)
        gap = tl.abs(r_rgb - r_ir)
        conflict = (cosine < 0) & (i < may_conflict)
        if dual != 0:
            conflict = conflict & (cosine.to(tl.float64) < mean_cosine) & (gap > mean_gap)  # Eq. 6
        rgb_is_weak = r_rgb < r_ir  # Eq. 7; a tie leaves rgb reliable
        lam = tl.full((N,), 0, tl.float64)
        if blend != 0:
            lam = 1 / (1 + tl.exp(-gap / (r_rgb + r_ir + eps)))  # Eq. 10
        lam = tl.where(conflict, lam, 0.0)
        of_weak = 1 - lam
        of_strong = lam - of_weak * ab / (tl.where(rgb_is_weak, bb, aa) + eps)  # Eq. 8, 9
        tl.store(cosine_out + row, tl.where(all_finite, cosine, float("nan")), mask=there)
        tl.store(gap_out + row, gap.to(tl.float32), mask=there)
        tl.store(mask_out + row, conflict.to(tl.int8), mask=there)
        tl.store(strength_out + row, lam.to(tl.float32), mask=there)
        marks = conflict.to(tl.int32)
        place = first_row + count + tl.cumsum(marks, 0) - 1
        tl.store(changes + place, 2 * i + tl.where(rgb_is_weak, 0, 1), mask=conflict)
        tl.store(shares + 2 * place, of_weak, mask=conflict)
        tl.store(shares + 2 * place + 1, of_strong, mask=conflict)
        count += tl.sum(marks, 0)
    tl.store(count_at, count)


def of_rule(rule: RaGradRule) -> dict[str, Any]:
    """A rule as arguments of a kernel."""
    return {
        "eps": rule.eps,
        "dual": int(rule.identify == "dual"),
        "blend": int(rule.resolve == "blend"),
    }


def of_record(record: Conflicts) -> dict[str, Tensor]:
    """A record as arguments of a kernel."""
    return {
        "cosine": record.cosine,
        "gap": record.gap,
        "mask": record.mask.view(torch.int8),
        "strength": record.strength,
    }
