"""A backend and the reference on the same input, compared stage by stage."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ragrad_ext.backends import Backend, History, RowSums
from ragrad_ext.backends.reference import Reference
from ragrad_ext.rows.bucket import Bucket, Buckets, Layout
from ragrad_ext.rows.conflicts import Conflicts
from ragrad_ext.rules.ragrad import Options

from . import cases
from .tolerances import MARGIN, RESULT, STAGE

Side = list[Tensor]


def bucket_of(rgb: Side, ir: Side, axes: tuple[int, ...] | None = None) -> Bucket:
    axes = axes or (0,) * len(rgb)
    layout = Layout.of([g.shape[axis] for g, axis in zip(rgb, axes, strict=True)])
    return Buckets(layout, axes).bucket(rgb, ir, rgb[0].device)


def clone(side: Side) -> Side:
    """Copies with the same strides, slices of larger storage included."""
    return [cases.cast(x, x.dtype) for x in side]


def corrected(
    backend: Backend, rgb: Side, ir: Side, r: Tensor, options: Options
) -> tuple[Side, Side, Conflicts]:
    """What a backend makes of copies of two gradient lists."""
    new_rgb, new_ir = clone(rgb), clone(ir)
    return new_rgb, new_ir, backend.correct_(bucket_of(new_rgb, new_ir), r, options)


def compare(
    backend: Backend,
    rgb: Side,
    ir: Side,
    seed: int = 0,
    options: Options | None = None,
    tolerance: Mapping[torch.dtype, float] = RESULT,
) -> tuple[int, int]:
    """Holds a correction against the reference; returns (rows, rows inside the margin)."""
    options = options or Options()
    r = torch.rand(2, sum(map(len, rgb)), generator=cases.rng(seed + 1)).to(rgb[0].device)
    mine_rgb, mine_ir, mine = corrected(backend, rgb, ir, r, options)
    true_rgb, true_ir, true = corrected(Reference(), rgb, ir, r, options)
    torch.testing.assert_close(mine.cosine, true.cosine, rtol=0, atol=STAGE, equal_nan=True)
    assert torch.equal(mine.gap, true.gap)
    close = inside_the_margin(true, options)
    assert torch.equal(mine.mask[~close], true.mask[~close])
    same = mine.mask == true.mask
    torch.testing.assert_close(mine.strength[same], true.strength[same], rtol=0, atol=STAGE)
    for l in range(len(rgb)):
        rows = slice(true.offsets[l], true.offsets[l + 1])
        for old, mine_g, true_g in ((rgb, mine_rgb, true_rgb), (ir, mine_ir, true_ir)):
            before, a, b = (x[l].reshape(len(x[l]), -1) for x in (old, mine_g, true_g))
            untouched = (before == b).all(1) & same[rows]
            assert torch.equal(bits(a[untouched]), bits(before[untouched]))
            a, b = a[same[rows]].double(), b[same[rows]].double()
            error = torch.where(a == b, 0, a - b).nan_to_num(0).norm(dim=1)
            assert (error <= tolerance[rgb[l].dtype] * b.nan_to_num(0, 0, 0).norm(dim=1)).all()
    return len(close), int(close.sum())


def bits(x: Tensor) -> Tensor:
    return x.contiguous().view({2: torch.int16, 4: torch.int32}[x.element_size()])


def inside_the_margin(record: Conflicts, options: Options) -> Tensor:
    """Rows whose cosine or gap is so near its threshold that Eq. 6 may go either way."""
    close = []
    for l in range(len(record)):
        one = record.layer(l)
        cosine, gap = one.cosine.double(), one.gap.double()
        if options.identify == "dual":
            threshold = cosine[cosine < 0].mean()
            near = (cosine - threshold).abs() <= MARGIN
            close.append(near | ((gap - gap.mean()).abs() <= MARGIN))
        else:
            close.append((cosine.abs() <= MARGIN) & (cosine != 0))
    return torch.cat(close)


def observed(
    backend: Backend,
    rgb: Side,
    ir: Side,
    theta: tuple[Side, Side],
    mean: tuple[Side, Side] | None,
    w: float,
) -> RowSums:
    bucket = bucket_of(rgb, ir)
    weight = torch.full((2, bucket.layout.rows), w, dtype=torch.float64, device=rgb[0].device)
    return backend.observe_(bucket, theta, History(mean, weight) if mean else None)


def compare_observation(
    backend: Backend,
    rgb: Side,
    ir: Side,
    theta: tuple[Side, Side],
    mean: tuple[Side, Side] | None,
    w: float = 0.3,
) -> RowSums:
    """Holds an observation against the reference; returns the backend's."""
    true_mean = (clone(mean[0]), clone(mean[1])) if mean else None
    largest = [
        torch.maximum(g.double().nan_to_num(0, 0, 0).abs(), mu.double().abs())
        for g, mu in zip(rgb + ir, mean[0] + mean[1] if mean else [], strict=mean is not None)
    ]
    mine = observed(backend, rgb, ir, theta, mean, w)
    true = observed(Reference(), rgb, ir, theta, true_mean, w)
    assert torch.equal(mine.observed, true.observed)
    # both sum in float64, in another order
    torch.testing.assert_close(mine.deviation, true.deviation, rtol=1e-12, atol=0)
    for m, side in enumerate((rgb, ir)):  # a sum with cancellation: relative to its terms
        terms = [
            (g.double() * (g.new_zeros(()) if t is None else t).double()).abs()
            for g, t in zip(side, theta[m], strict=True)
        ]
        size = torch.cat([t.reshape(len(t), -1).sum(1) for t in terms])
        error = (mine.dot[m] - true.dot[m]).abs()
        ok = true.observed[m]
        assert (error[ok] <= 1e-14 * size[ok]).all()
    if mean and true_mean:
        for a, b, old in zip(mean[0] + mean[1], true_mean[0] + true_mean[1], largest, strict=True):
            # one rounding of the output, and a last bit of float64 where mu + w (g - mu) cancels
            allowed = torch.finfo(a.dtype).eps * b.double().abs() + 2**-50 * old
            assert (torch.where(a == b, 0, a.double() - b.double()).abs() <= allowed).all()
    return mine
