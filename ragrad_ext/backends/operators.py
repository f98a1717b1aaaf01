"""The verbs of the contract as `torch.library` operators: a backend as torch.compile sees it.

Compiled code meets one opaque call that says what it writes. Eager code calls the backend itself
and pays nothing for this.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..rows.bucket import Bucket
from ..rows.conflicts import Conflicts
from ..rows.layout import Layout
from ..rows.plans import buckets_of
from ..rows.sums import History, Rows, RowSums, Sensitivity
from ..rules.ragrad import Identify, RaGradRule, Resolve
from .registry import with_backend

_LIBRARY = torch.library.Library("ragrad_ext", "DEF")
_GRADS = "Tensor(a!)[] rgb, Tensor(b!)[] ir"
# `present` lists the pairs whose gradients are passed; channels and channel_axes are of all pairs.
_GEOMETRY = "int[] present, int[] channels, int[] channel_axes, str backend"
_RULE = "str identify, str resolve, float eps"
_RECORD = "Tensor cosine, Tensor gap, Tensor mask, Tensor strength"
_LIBRARY.define(
    "observe_(Tensor[] rgb, Tensor[] ir, Tensor?[] weights_rgb, Tensor?[] weights_ir, "
    f"Tensor(a!)[] mean_rgb, Tensor(b!)[] mean_ir, Tensor? step_size, {_GEOMETRY}) "
    "-> (Tensor gram, Tensor g_theta, Tensor deviation, Tensor observed)"
)
_LIBRARY.define(f"apply_({_GRADS}, Tensor mix, {_GEOMETRY}) -> ()")
_LIBRARY.define(
    f"decide_and_apply_({_GRADS}, Tensor reliability, {_RULE}, {_GEOMETRY}) -> ({_RECORD})"
)
_LIBRARY.define(
    f"rate_and_apply_({_GRADS}, Tensor gram, Tensor g_theta, Tensor deviation, Tensor observed, "
    "Tensor? effect, Tensor(c!) score, Tensor(d!) steps, float alpha, int[] groups, "
    f"bool by_sensitivity, {_RULE}, {_GEOMETRY}) -> (Tensor reliability, {_RECORD})"
)


class Traced:
    """Any backend as operators, for code that is being compiled.

    Args:
        name: as in `select`, which is asked whenever the compiled code runs.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def unusable(self, device: torch.device) -> str | None:
        return None

    def observe_(
        self, bucket: Bucket, weights: tuple[Rows, Rows], history: History | None
    ) -> RowSums:
        rgb, ir, *geometry = self._operands(bucket)
        if not rgb:
            zeros = torch.zeros(2, bucket.layout.rows, dtype=torch.float64, device=bucket.device)
            gram = zeros.new_zeros(bucket.layout.rows, 3)
            return RowSums(gram, zeros, zeros.clone(), zeros.bool())
        mean, step_size = (([], []), None) if history is None else history
        return RowSums(
            *torch.ops.ragrad_ext.observe_(rgb, ir, *weights, *mean, step_size, *geometry)
        )

    def apply_(self, bucket: Bucket, mix: Tensor) -> None:
        rgb, ir, *geometry = self._operands(bucket)
        torch.ops.ragrad_ext.apply_(rgb, ir, mix, *geometry)

    def decide_and_apply_(self, bucket: Bucket, reliability: Tensor, rule: RaGradRule) -> Conflicts:
        rgb, ir, *geometry = self._operands(bucket)
        cosine, gap, mask, strength = torch.ops.ragrad_ext.decide_and_apply_(
            rgb, ir, reliability, rule.identify, rule.resolve, rule.eps, *geometry
        )
        return Conflicts(cosine, gap, mask, strength, bucket.layout)

    def rate_and_apply_(
        self,
        bucket: Bucket,
        sums: RowSums,
        effect: Tensor | None,
        sensitivity: Sensitivity,
        groups: Sequence[int],
        rule: RaGradRule,
        *,
        by_sensitivity: bool,
    ) -> tuple[Tensor, Conflicts]:
        rgb, ir, *geometry = self._operands(bucket)
        how = list(groups), by_sensitivity, rule.identify, rule.resolve, rule.eps
        r, cosine, gap, mask, strength = torch.ops.ragrad_ext.rate_and_apply_(
            rgb, ir, *sums, effect, *sensitivity, *how, *geometry
        )
        return r, Conflicts(cosine, gap, mask, strength, bucket.layout)

    def _operands(
        self, bucket: Bucket
    ) -> tuple[list[Tensor], list[Tensor], list[int], list[int], list[int], str]:
        rgb, ir = bucket.grads
        pairs = [(l, a, b) for l, (a, b) in enumerate(zip(rgb, ir, strict=True))]
        there = [(l, a, b) for l, a, b in pairs if a is not None and b is not None]
        return (
            [a for _, a, _ in there],
            [b for _, _, b in there],
            [l for l, _, _ in there],
            list(bucket.layout.channels),
            list(bucket.channel_axes),
            self.name,
        )


def _restore(
    rgb: Sequence[Tensor],
    ir: Sequence[Tensor],
    device: torch.device,
    present: Sequence[int],
    channels: Sequence[int],
    channel_axes: Sequence[int],
) -> Bucket:
    """The bucket that `Traced` was called with."""
    grads: tuple[list[Tensor | None], ...] = tuple([None] * len(channels) for _ in range(2))
    for side, given in zip(grads, (rgb, ir), strict=True):
        for l, g in zip(present, given, strict=True):
            side[l] = g
    buckets = buckets_of(Layout.of(channels), tuple(channel_axes))
    return buckets.bucket(grads[0], grads[1], device)


def _observe_(
    rgb: Sequence[Tensor],
    ir: Sequence[Tensor],
    weights_rgb: Rows,
    weights_ir: Rows,
    mean_rgb: Sequence[Tensor],
    mean_ir: Sequence[Tensor],
    step_size: Tensor | None,
    *operands: object,
) -> tuple[Tensor, ...]:
    *geometry, name = operands
    bucket = _restore(rgb, ir, rgb[0].device, *geometry)  # type: ignore[arg-type]
    means = mean_rgb, mean_ir
    history = None if step_size is None else History(means, step_size.contiguous())
    weights = weights_rgb, weights_ir
    return tuple(
        with_backend(str(name), bucket.device, lambda b: b.observe_(bucket, weights, history))
    )


def _apply_(rgb: Sequence[Tensor], ir: Sequence[Tensor], mix: Tensor, *operands: object) -> None:
    *geometry, name = operands
    bucket = _restore(rgb, ir, mix.device, *geometry)  # type: ignore[arg-type]
    with_backend(str(name), bucket.device, lambda b: b.apply_(bucket, mix))


def _decide_and_apply_(
    rgb: Sequence[Tensor],
    ir: Sequence[Tensor],
    reliability: Tensor,
    identify: Identify,
    resolve: Resolve,
    eps: float,
    *operands: object,
) -> tuple[Tensor, ...]:
    *geometry, name = operands
    bucket = _restore(rgb, ir, reliability.device, *geometry)  # type: ignore[arg-type]
    r, rule = reliability.contiguous(), RaGradRule(identify, resolve, eps)
    found = with_backend(str(name), bucket.device, lambda b: b.decide_and_apply_(bucket, r, rule))
    return found.cosine, found.gap, found.mask, found.strength


def _rate_and_apply_(
    rgb: Sequence[Tensor],
    ir: Sequence[Tensor],
    gram: Tensor,
    g_theta: Tensor,
    deviation: Tensor,
    observed: Tensor,
    effect: Tensor | None,
    score: Tensor,
    steps: Tensor,
    alpha: float,
    groups: Sequence[int],
    by_sensitivity: bool,
    identify: Identify,
    resolve: Resolve,
    eps: float,
    *operands: object,
) -> tuple[Tensor, ...]:
    *geometry, name = operands
    bucket = _restore(rgb, ir, gram.device, *geometry)  # type: ignore[arg-type]
    sums = RowSums(*(x.contiguous() for x in (gram, g_theta, deviation, observed)))
    r, found = with_backend(
        str(name),
        bucket.device,
        lambda b: b.rate_and_apply_(
            bucket,
            sums,
            effect,
            Sensitivity(score, steps, alpha),
            groups,
            RaGradRule(identify, resolve, eps),
            by_sensitivity=by_sensitivity,
        ),
    )
    return r, found.cosine, found.gap, found.mask, found.strength


for _name, _function in (
    ("observe_", _observe_),
    ("apply_", _apply_),
    ("decide_and_apply_", _decide_and_apply_),
    ("rate_and_apply_", _rate_and_apply_),
):
    for _key in ("CPU", "CUDA"):
        _LIBRARY.impl(_name, _function, _key)


@torch.library.register_fake("ragrad_ext::observe_", lib=_LIBRARY)
def _fake_observe_(
    rgb: Sequence[Tensor], ir: Sequence[Tensor], *rest: object
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    channels: Sequence[int] = rest[-3]  # type: ignore[assignment]
    gram = rgb[0].new_empty(sum(channels), 3, dtype=torch.float64)
    g_theta, deviation = (gram.new_empty(2, sum(channels)) for _ in range(2))
    return gram, g_theta, deviation, torch.empty_like(g_theta, dtype=torch.bool)


@torch.library.register_fake("ragrad_ext::apply_", lib=_LIBRARY)
def _fake_apply_(rgb: Sequence[Tensor], ir: Sequence[Tensor], *rest: object) -> None:
    return None


def _fake_record(r: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    cosine, gap, strength = (torch.empty_like(r[0], dtype=torch.float32) for _ in range(3))
    return cosine, gap, torch.empty_like(cosine, dtype=torch.bool), strength


@torch.library.register_fake("ragrad_ext::decide_and_apply_", lib=_LIBRARY)
def _fake_decide_and_apply_(
    rgb: Sequence[Tensor], ir: Sequence[Tensor], reliability: Tensor, *rest: object
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _fake_record(reliability)


@torch.library.register_fake("ragrad_ext::rate_and_apply_", lib=_LIBRARY)
def _fake_rate_and_apply_(
    rgb: Sequence[Tensor], ir: Sequence[Tensor], gram: Tensor, g_theta: Tensor, *rest: object
) -> tuple[Tensor, ...]:
    return torch.empty_like(g_theta, dtype=torch.float32), *_fake_record(g_theta)
