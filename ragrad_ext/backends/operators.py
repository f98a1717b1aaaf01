"""The two halves of the contract as `torch.library` operators: a backend as torch.compile sees it.

Compiled code meets one opaque call that says what it writes. Eager code calls the backend itself
and pays nothing for this.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from ..rows.bucket import Bucket, Buckets, Layout
from ..rows.conflicts import Conflicts
from ..rules.ragrad import Identify, Options, Resolve
from .contract import History, Rows, RowSums
from .rating import Rating

_LIBRARY = torch.library.Library("ragrad_ext", "DEF")
# `present` lists the pairs whose gradients are passed; channels and channel_axes are of all pairs.
_GEOMETRY = "int[] present, int[] channels, int[] channel_axes, str backend"
_LIBRARY.define(
    "correct_(Tensor(a!)[] rgb, Tensor(b!)[] ir, Tensor reliability, Tensor? twin_dots, "
    f"str identify, str resolve, float eps, {_GEOMETRY}) -> (Tensor, Tensor, Tensor, Tensor)"
)
_LIBRARY.define(
    "observe_(Tensor[] rgb, Tensor[] ir, Tensor?[] weights_rgb, Tensor?[] weights_ir, "
    "Tensor(a!)[] mean_rgb, Tensor(b!)[] mean_ir, Tensor? w, "
    f"{_GEOMETRY}) -> (Tensor, Tensor, Tensor, Tensor)"
)


class Traced(Rating):
    """Any backend behind operators, for code that is being compiled.

    Args:
        name: as in `select`, which is asked whenever the compiled code runs.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def unusable(self, device: torch.device) -> str | None:
        return None

    def correct_(
        self,
        bucket: Bucket,
        reliability: Tensor,
        options: Options,
        twin_dots: Tensor | None = None,
    ) -> Conflicts:
        rgb, ir, present = _present(bucket)
        cosine, gap, mask, strength = torch.ops.ragrad_ext.correct_(
            rgb, ir, reliability, twin_dots, *options, present, *self._geometry(bucket)
        )
        return Conflicts(cosine, gap, mask, strength, bucket.layout)

    def observe_(
        self, bucket: Bucket, weights: tuple[Rows, Rows], history: History | None
    ) -> RowSums:
        rgb, ir, present = _present(bucket)
        if not present:
            zeros = torch.zeros(2, bucket.layout.rows, dtype=torch.float64, device=bucket.device)
            return RowSums(zeros, zeros.clone(), zeros.bool())
        mean, w = (([], []), None) if history is None else history
        dot, deviation, observed, twin_dots = torch.ops.ragrad_ext.observe_(
            rgb, ir, *weights, *mean, w, present, *self._geometry(bucket)
        )
        return RowSums(dot, deviation, observed, twin_dots)

    def _geometry(self, bucket: Bucket) -> tuple[list[int], list[int], str]:
        return list(bucket.layout.channels), list(bucket.channel_axes), self.name


def _present(bucket: Bucket) -> tuple[list[Tensor], list[Tensor], list[int]]:
    rgb, ir = bucket.grads
    pairs = [(l, a, b) for l, (a, b) in enumerate(zip(rgb, ir, strict=True))]
    there = [(l, a, b) for l, a, b in pairs if a is not None and b is not None]
    return [a for _, a, _ in there], [b for _, _, b in there], [l for l, _, _ in there]


@lru_cache(maxsize=16)
def _buckets(channels: tuple[int, ...], channel_axes: tuple[int, ...]) -> Buckets:
    return Buckets(Layout.of(channels), channel_axes)


def _restore(
    rgb: Sequence[Tensor],
    ir: Sequence[Tensor],
    device: torch.device,
    present: Sequence[int],
    channels: Sequence[int],
    channel_axes: Sequence[int],
    backend: str,
) -> tuple[str, Bucket]:
    """The backend's name and the bucket that `Traced` was called with."""
    grads: tuple[list[Tensor | None], ...] = tuple([None] * len(channels) for _ in range(2))
    for side, given in zip(grads, (rgb, ir), strict=True):
        for l, g in zip(present, given, strict=True):
            side[l] = g
    buckets = _buckets(tuple(channels), tuple(channel_axes))
    return backend, buckets.bucket(grads[0], grads[1], device)


def _correct_(
    rgb: Sequence[Tensor],
    ir: Sequence[Tensor],
    reliability: Tensor,
    twin_dots: Tensor | None,
    identify: Identify,
    resolve: Resolve,
    eps: float,
    *geometry: object,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from . import with_backend  # the registry knows this module

    name, bucket = _restore(rgb, ir, reliability.device, *geometry)  # type: ignore[arg-type]
    reliability, options = reliability.contiguous(), Options(identify, resolve, eps)
    found = with_backend(
        name, bucket.device, lambda b: b.correct_(bucket, reliability, options, twin_dots)
    )
    return found.cosine, found.gap, found.mask, found.strength


def _observe_(
    rgb: Sequence[Tensor],
    ir: Sequence[Tensor],
    weights_rgb: Rows,
    weights_ir: Rows,
    mean_rgb: Sequence[Tensor],
    mean_ir: Sequence[Tensor],
    w: Tensor | None,
    *geometry: object,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    device = next((g.device for g in rgb), torch.device("cpu"))
    from . import with_backend  # the registry knows this module

    name, bucket = _restore(rgb, ir, device, *geometry)  # type: ignore[arg-type]
    history = None if w is None else History((mean_rgb, mean_ir), w.contiguous())
    weights = weights_rgb, weights_ir
    sums = with_backend(name, device, lambda b: b.observe_(bucket, weights, history))
    twin_dots = sums.twin_dots
    if twin_dots is None:  # a backend that has none reads none
        twin_dots = sums.dot.new_zeros(bucket.layout.rows, 3)
    return sums.dot, sums.deviation, sums.observed, twin_dots


for _name, _function in (("correct_", _correct_), ("observe_", _observe_)):
    for _key in ("CPU", "CUDA"):
        _LIBRARY.impl(_name, _function, _key)


@torch.library.register_fake("ragrad_ext::correct_", lib=_LIBRARY)
def _fake_correct_(
    rgb: Sequence[Tensor], ir: Sequence[Tensor], reliability: Tensor, *rest: object
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    cosine, gap, strength = (torch.empty_like(reliability[0]) for _ in range(3))
    return cosine, gap, torch.empty_like(cosine, dtype=torch.bool), strength


@torch.library.register_fake("ragrad_ext::observe_", lib=_LIBRARY)
def _fake_observe_(
    rgb: Sequence[Tensor], ir: Sequence[Tensor], *rest: object
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    channels: Sequence[int] = rest[-3]  # type: ignore[assignment]
    dot, deviation = (rgb[0].new_empty(2, sum(channels), dtype=torch.float64) for _ in range(2))
    twin_dots = dot.new_empty(sum(channels), 3)
    return dot, deviation, torch.empty_like(dot, dtype=torch.bool), twin_dots
