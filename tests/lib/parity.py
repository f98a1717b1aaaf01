"""A backend and the reference on the same input, compared stage by stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ragrad_ext.backends import Backend, History, RowSums
from ragrad_ext.backends.reference import Reference
from ragrad_ext.rows.bucket import Bucket, Buckets
from ragrad_ext.rows.conflicts import Conflicts
from ragrad_ext.rows.layout import Layout
from ragrad_ext.rules import RaGradRule

from . import cases, oracle
from .tolerances import DEVIATION, GRAM, MARGIN, PRODUCT, RESULT, STAGE, SUM

Side = list[Tensor]


def bucket_of(rgb: Side, ir: Side, axes: tuple[int, ...] | None = None) -> Bucket:
    axes = axes or (0,) * len(rgb)
    layout = Layout.of([g.shape[axis] for g, axis in zip(rgb, axes, strict=True)])
    return Buckets(layout, axes).bucket(rgb, ir, rgb[0].device)


def clone(side: Side) -> Side:
    """Copies with the same strides, slices of larger storage included."""
    return [cases.cast(x, x.dtype) for x in side]


def corrected(
    backend: Backend, rgb: Side, ir: Side, r: Tensor, rule: RaGradRule
) -> tuple[Side, Side, Conflicts]:
    """What a backend makes of copies of two gradient lists."""
    new_rgb, new_ir = clone(rgb), clone(ir)
    return new_rgb, new_ir, backend.decide_and_apply_(bucket_of(new_rgb, new_ir), r, rule)


def compare(
    backend: Backend,
    rgb: Side,
    ir: Side,
    seed: int = 0,
    rule: RaGradRule | None = None,
    tolerance: Mapping[torch.dtype, float] = RESULT,
) -> tuple[int, int]:
    """Holds a correction against the reference; returns (rows, rows inside the margin)."""
    rule = rule or RaGradRule()
    r = torch.rand(2, sum(map(len, rgb)), generator=cases.rng(seed + 1)).to(rgb[0].device)
    mine_rgb, mine_ir, mine = corrected(backend, rgb, ir, r, rule)
    true_rgb, true_ir, true = corrected(Reference(), rgb, ir, r, rule)
    torch.testing.assert_close(mine.cosine, true.cosine, rtol=0, atol=STAGE, equal_nan=True)
    assert torch.equal(mine.gap, true.gap)
    close = inside_the_margin(true, rule)
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


def close_grams(mine: Tensor, true: Tensor) -> None:
    """Both sum in float64, in another order; what cancels is measured by the norms."""
    finite = true.isfinite().all(1)
    assert torch.equal(mine.isfinite().all(1), finite)
    mine, true = mine[finite], true[finite]
    size = torch.stack([true[:, 0], true[:, 1], (true[:, 0] * true[:, 1]).sqrt()], 1)
    assert ((mine - true).abs() <= GRAM * size).all()


def mixed(backend: Backend, rgb: Side, ir: Side, mix: Tensor) -> tuple[Side, Side]:
    """What a backend makes of copies of two gradient lists by given matrices."""
    new_rgb, new_ir = clone(rgb), clone(ir)
    backend.apply_(bucket_of(new_rgb, new_ir), mix)
    return new_rgb, new_ir


def compare_mixing(
    backend: Backend,
    rgb: Side,
    ir: Side,
    mix: Tensor,
    tolerance: Mapping[torch.dtype, float] = RESULT,
) -> None:
    """Holds `apply_` against the reference, element by element.

    Rows that keep their bytes must keep them.
    """
    mine, true = mixed(backend, rgb, ir, mix), mixed(Reference(), rgb, ir, mix)
    identity = torch.eye(2, dtype=mix.dtype, device=mix.device)
    unit = (mix == identity).all(2)
    rows_of_layers = bucket_of(rgb, ir).layout.slices()
    for m, old in enumerate((rgb, ir)):
        for l, rows in enumerate(rows_of_layers):
            before, a, b, x, y = (
                g.reshape(len(g), -1) for g in (old[l], mine[m][l], true[m][l], rgb[l], ir[l])
            )
            kept = unit[rows, m]
            assert torch.equal(bits(a[kept]), bits(before[kept]))
            # one rounding of the output, and last bits of float64 where the sum cancels
            step = torch.finfo(a.dtype).eps * tolerance[a.dtype] / RESULT[a.dtype]
            own = mix[rows, m].abs()
            terms = own[:, :1] * x.double().abs() + own[:, 1:] * y.double().abs()
            allowed = step * b.double().abs() + PRODUCT * terms
            allowed += step * torch.finfo(a.dtype).smallest_normal  # of subnormal numbers
            error = (a.double() - b.double()).abs()
            assert (error <= allowed)[~kept].all()


def matrices(rows: int, seed: int = 0, device: torch.device | str = "cpu") -> Tensor:
    """(rows, 2, 2): identities, one row changed, the other, both, a diagonal, a swap, zeros."""
    mix = torch.randn(rows, 2, 2, dtype=torch.float64, generator=cases.rng(seed))
    identity = torch.eye(2, dtype=torch.float64)
    kind = torch.arange(rows) % 7
    mix[kind == 0] = identity
    mix[kind == 1, 0] = identity[0]
    mix[kind == 2, 1] = identity[1]
    mix[kind == 4] *= identity
    mix[kind == 5] = identity.flip(0)
    mix[kind == 6] = 0
    return mix.to(device)


def matrices_for(rgb: Side, ir: Side, seed: int = 0) -> Tensor:
    """`matrices`, but the identity where a gradient is not finite, as `decide` has it."""
    pairs = zip(rgb, ir, strict=True)
    finite = [(a.isfinite() & b.isfinite()).reshape(len(a), -1).all(1) for a, b in pairs]
    mix = matrices(sum(map(len, rgb)), seed, rgb[0].device)
    identity = torch.eye(2, dtype=mix.dtype, device=mix.device)
    return torch.where(torch.cat(finite)[:, None, None], mix, identity)


def bits(x: Tensor) -> Tensor:
    return x.contiguous().view({2: torch.int16, 4: torch.int32}[x.element_size()])


def inside_the_margin(record: Conflicts, rule: RaGradRule) -> Tensor:
    """Rows whose cosine or gap is so near its threshold that Eq. 6 may go either way."""
    close = []
    for l in range(len(record)):
        one = record.layer(l)
        cosine, gap = one.cosine.double(), one.gap.double()
        if rule.identify == "dual":
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
    step_size = torch.full((2, bucket.layout.rows), w, dtype=torch.float64, device=rgb[0].device)
    return backend.observe_(bucket, theta, History(mean, step_size) if mean else None)


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
    close_grams(mine.gram, true.gram)
    torch.testing.assert_close(mine.deviation, true.deviation, rtol=DEVIATION, atol=0)
    for m, side in enumerate((rgb, ir)):  # a sum with cancellation: relative to its terms
        terms = [
            (g.double() * (g.new_zeros(()) if t is None else t).double()).abs()
            for g, t in zip(side, theta[m], strict=True)
        ]
        size = torch.cat([t.reshape(len(t), -1).sum(1) for t in terms])
        error = (mine.g_theta[m] - true.g_theta[m]).abs()
        ok = true.observed[m]
        assert (error[ok] <= SUM * size[ok]).all()
    if mean and true_mean:
        for a, b, old in zip(mean[0] + mean[1], true_mean[0] + true_mean[1], largest, strict=True):
            # one rounding of the output, and a last bit of float64 where mu + w (g - mu) cancels
            allowed = torch.finfo(a.dtype).eps * b.double().abs() + PRODUCT * old
            assert (torch.where(a == b, 0, a.double() - b.double()).abs() <= allowed).all()
    return mine


def hold_to_exact(rule: str, old: tuple[Side, Side], news: Sequence[tuple[Side, Side]]) -> None:
    """Holds what backends made of gradients by PCGrad* or IMTL* against exact arithmetic."""
    exact = {"pcgrad": oracle.pcgrad, "imtl": oracle.imtl}[rule]
    for l, (rgb, ir) in enumerate(zip(*old, strict=True)):
        for m, (before, true) in enumerate(zip((rgb, ir), exact(rgb, ir), strict=True)):
            expected = torch.tensor([[float(x) for x in row] for row in true]).double()
            limit = torch.finfo(before.dtype).max
            # A row that cancels is as exact as the row that it was made of.
            own = before.double().reshape(expected.shape).norm(dim=1)
            size = torch.maximum(own, expected.norm(dim=1))
            for new in news:
                error = new[m][l].double().reshape(expected.shape) - expected.clamp(-limit, limit)
                assert (error.norm(dim=1) <= RESULT[before.dtype] * size).all()
