"""`correct_`: check the gradients, observe them, correct them in place."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .backends import Backend, Traced
from .backends.registry import Chosen
from .repa import Do, Repa, T
from .rows.bucket import Bucket, Buckets
from .rows.conflicts import Conflicts
from .rows.layout import Layout
from .rows.plans import buckets_of
from .rows.reliability import Reliability
from .rules import RaGradRule, Rule
from .rules.decide import decide, reads_reliability
from .rules.registry import RuleName, rule_of


@torch.no_grad()
def correct_(
    grads_rgb: Sequence[Tensor | None],
    grads_ir: Sequence[Tensor | None],
    stats: Reliability | Repa | None = None,
    *,
    rule: RuleName | Rule = "ragrad",
    backend: str = "auto",
) -> Conflicts:
    """Correct gradients of two modalities in place, row by row: one output channel at a time.

    Args:
        grads_rgb, grads_ir: L twins, each a (C_l, ...) float32, bfloat16 or float16 tensor of
            any dense strides. None on either side skips the pair. A pair that holds an inf or nan
            is left as it is, and so is every row that the rule does not change.
        stats: a `Reliability` (correction alone), or a `Repa`: then this one call observes the
            gradients (Eq. 2-5) and corrects them. None for a rule that reads no reliability.
        rule: ``"ragrad"`` (Eq. 6-10), ``"pcgrad"``, ``"imtl"``; an instance with options, such as
            ``RaGradRule(identify="cosine")``; or a function of one's own, see `rules.Rule`.
        backend: ``"auto"`` or a name that ``python -m ragrad_ext doctor`` lists.

    Returns:
        What was found, row by row. Nothing waits for the device until it is read.

    Raises:
        ValueError, TypeError, RuntimeError: naming the pair, what was found and the cure,
            before any gradient or statistic is touched. What a rule of one's own returns is checked
            before any gradient is touched, which waits for the device.
    """
    chosen = rule_of(rule)
    check_stats(stats, chosen)
    device = _device_of(stats, grads_rgb, grads_ir)
    do: Do = _traced(backend) if torch.compiler.is_compiling() else Chosen(backend, device)
    bucket = _buckets(stats, grads_rgb, grads_ir).bucket(grads_rgb, grads_ir, device)
    if isinstance(stats, Repa):
        return stats.step_(bucket, do, chosen)
    r = None if stats is None else stats.values
    if isinstance(chosen, RaGradRule):
        assert r is not None  # by check_stats
        return do(lambda b: b.decide_and_apply_(bucket, r, chosen))
    return _by_rule(bucket, do, r, chosen)


def check_stats(stats: Reliability | Repa | None, rule: Rule) -> None:
    """Refuse statistics that do not give a rule what it reads."""
    if stats is not None and not isinstance(stats, (Reliability, Repa)):
        raise TypeError(f"stats is {type(stats).__name__}; pass a Reliability or a Repa")
    nothing = stats is None or (isinstance(stats, Repa) and stats.factors == "none")
    if nothing and isinstance(rule, RaGradRule):
        found = "stats is None" if stats is None else 'this Repa has factors="none"'
        raise ValueError(
            f"{found}, and RaGrad's own rule corrects by reliability; pass a Reliability or a "
            'Repa that measures it, or another rule such as rule="pcgrad"'
        )
    if nothing and reads_reliability(rule) and stats is not None:
        raise ValueError(
            'this Repa has factors="none", and the rule reads reliability; give it factors, or the '
            "rule an attribute reads_reliability = False"
        )


def _by_rule(bucket: Bucket, do: Do, r: Tensor | None, rule: Rule) -> Conflicts:
    """Observe, decide and apply, for any rule by a given R."""
    gram = do(lambda b: b.observe_(bucket, bucket.nothing, None)).gram
    mix, found = decide(gram, r, bucket.layout, rule, bucket.absent())
    do(lambda b: b.apply_(bucket, mix))
    return found


def _traced(name: str) -> Do:
    def do(work: Callable[[Backend], T], /) -> T:
        return work(Traced(name))

    return do


def _device_of(
    stats: Reliability | Repa | None,
    grads_rgb: Sequence[Tensor | None],
    grads_ir: Sequence[Tensor | None],
) -> torch.device:
    """Of a given reliability; else of the gradients: a Repa follows a model that has moved."""
    if isinstance(stats, Reliability):
        return stats.device
    tensors = (g for g in (*grads_rgb, *grads_ir) if isinstance(g, torch.Tensor))
    default = torch.device("cpu") if stats is None else stats.device
    return next((g.device for g in tensors), default)


def _buckets(
    stats: Reliability | Repa | None,
    grads_rgb: Sequence[Tensor | None],
    grads_ir: Sequence[Tensor | None],
) -> Buckets:
    if isinstance(stats, Repa):
        return stats.buckets
    if stats is None:
        layout = Layout.of([_channels(*pair) for pair in zip(grads_rgb, grads_ir, strict=False)])
    else:
        layout = stats.layout
    return buckets_of(layout)


def _channels(g_rgb: Tensor | None, g_ir: Tensor | None) -> int:
    """Of a pair of gradients that the checks are yet to see."""
    if not isinstance(g_rgb, Tensor) or g_ir is None or g_rgb.dim() == 0:
        return 0
    return g_rgb.shape[0]
