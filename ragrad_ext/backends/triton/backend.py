"""The backend for GPUs: kernels in Triton, compiled at the first step, for float32 and below.

Triton itself is imported when it is first needed.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from ...rows.bucket import Bucket
from ...rows.conflicts import Conflicts
from ...rows.sums import History, Rows, RowSums, Sensitivity
from ...rules.ragrad import RaGradRule
from ..contract import Unavailable
from .launch import Launch, compile_, start
from .verb import Verb

V = TypeVar("V", bound=Verb)


@dataclass
class Kept:
    """What this backend keeps from step to step for one set of twins.

    Attributes:
        verbs: the latest of each kind.
        captured: those in a CUDA graph, which will come back to their memory.
    """

    verbs: dict[type[Verb], Verb] = field(default_factory=dict)
    captured: list[Verb] = field(default_factory=list)


class Triton:
    """Reads every gradient once, rewrites changed rows in place; no copies, no synchronisation.

    Every verb is one launch for all layers of one dtype; layers whose rows are not runs of
    consecutive elements take another. So a step with `Repa` is two launches: `observe_`, and
    `rate_and_apply_` or `apply_`. The kernel of a verb is compiled before its first write.
    """

    name = "triton"

    def __init__(self) -> None:
        self._known: dict[torch.device, str | None] = {}  # why a device cannot be served

    def unusable(self, device: torch.device) -> str | None:
        if device not in self._known:
            self._known[device] = _find_fault(device)
        return self._known[device]

    def observe_(
        self, bucket: Bucket, weights: tuple[Rows, Rows], history: History | None
    ) -> RowSums:
        from .observe import Observe

        operands = *weights, *(history.mean if history else ())
        verb = _verb(bucket, Observe, *operands)
        sums = verb.sums()
        self._run(bucket, verb, verb.launches(sums, history.step_size if history else None))
        return sums

    def apply_(self, bucket: Bucket, mix: Tensor) -> None:
        from .apply import Apply

        verb = _verb(bucket, Apply)
        self._run(bucket, verb, verb.launches(mix.contiguous()))
        bucket.note_changes()

    def decide_and_apply_(self, bucket: Bucket, reliability: Tensor, rule: RaGradRule) -> Conflicts:
        from .decide_and_apply import DecideAndApply

        verb = _verb(bucket, DecideAndApply)
        record = verb.record()
        self._run(bucket, verb, verb.launches(record, reliability, rule))
        bucket.note_changes()
        return record

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
        from .rate_and_apply import RateAndApply

        verb = _verb(bucket, RateAndApply)
        record = verb.record()
        # Nothing is known of the rows of skipped pairs: 1/2 for every factor of R, and S stays. So
        # where every pair is skipped, this is all there is to do.
        unknown = 0.5 ** ((effect is not None) + by_sensitivity)
        r = verb.new(torch.float32, 2, bucket.layout.rows, unvisited=unknown)
        launches = verb.launches(
            record, r, sums, effect, sensitivity, tuple(groups), rule, by_sensitivity
        )
        self._run(bucket, verb, launches)
        bucket.note_changes()
        return r, record

    def _run(self, bucket: Bucket, verb: Verb, launches: list[Launch]) -> None:
        launches = verb.point() + launches
        if verb.captured and verb not in (kept := _kept(bucket)).captured:
            kept.captured.append(verb)
        if not verb.compiled:
            try:
                compile_(launches, bucket.device)
            except Exception as error:  # whatever a compiler may say: it is not the caller's fault
                why = f"its kernels do not compile here: {type(error).__name__}: {error}"
                self._known[bucket.device] = why
                raise Unavailable(f'backend "triton" on {bucket.device}: {why}') from error
            verb.compiled = True
        start(launches, bucket.device)


def _kept(bucket: Bucket) -> Kept:
    kept: Kept = bucket.memory.setdefault("triton", Kept())
    return kept


def _verb(bucket: Bucket, kind: type[V], *operands: Rows) -> V:
    """The one of the last step, if it had the same geometry; else a new one."""
    verbs = _kept(bucket).verbs
    verb = verbs.get(kind)
    if not (isinstance(verb, kind) and verb.fits(bucket, operands)):
        verb = verbs[kind] = kind(bucket, operands)
    return verb


def _find_fault(device: torch.device) -> str | None:
    if device.type == "cpu":
        return _find_fault_of_interpreter()
    if device.type != "cuda" or torch.version.cuda is None:
        return "it needs a CUDA device"
    if not torch.cuda.is_available():
        return "no CUDA device or driver is usable here"
    if (device.index or 0) >= (n := torch.cuda.device_count()):
        return f"CUDA device {device.index} was asked for, and there are {n}"
    if (found := torch.cuda.get_device_capability(device)) < (8, 0):
        return f"it needs compute capability 8.0, this device has {found[0]}.{found[1]}"
    return _find_fault_of_triton()


def _find_fault_of_triton() -> str | None:
    try:
        import triton
    except Exception as error:
        return f"triton does not import ({error}); it comes with PyTorch's CUDA builds"
    if tuple(int(n) for n in triton.__version__.split(".")[:2]) < (3, 6):
        return f"it needs triton 3.6, found {triton.__version__}; update torch, which brings it"
    return None


def _find_fault_of_interpreter() -> str | None:
    """On a CPU the kernels run in Triton's interpreter, if Triton itself was imported with it."""
    if "TRITON_INTERPRET" not in os.environ:  # the usual case does not import Triton
        return "it needs a CUDA device"
    if (why := _find_fault_of_triton()) is not None:
        return why
    import triton
    import triton.language as tl

    # Both were decided by TRITON_INTERPRET: our kernels are defined later than Triton's own.
    if not triton.knobs.runtime.interpret or isinstance(tl.sum, triton.JITFunction):
        return "it needs a CUDA device, or TRITON_INTERPRET=1 from the start of the process"
    return None
