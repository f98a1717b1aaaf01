"""The backend for GPUs: kernels in Triton, compiled at the first step, for float32 and below.

Triton itself is imported when it is first needed.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...rows.bucket import Bucket
from ...rows.conflicts import Conflicts
from ...rules.ragrad import Options
from ..contract import History, Rows, RowSums, Sensitivity, Unavailable
from .conclusion import Conclusion
from .launch import Correction, Observation, Record, Work


class Triton:
    """Reads every gradient once, rewrites conflict rows in place; no copies, no synchronisation.

    A correction is one launch for all layers of one dtype; layers whose rows are not runs of
    consecutive elements take another. A step with `Repa` is two: the observation, and a correction
    that finds R first (Eq. 3-5). The kernels are compiled before the first write.

    Args:
        two_launches: the plain variant, sums first, rewrite second: the yardstick of
            ``benchmarks/kernels.py``.
    """

    name = "triton"

    def __init__(self, *, two_launches: bool = False) -> None:
        self.two_launches = two_launches
        self._known: dict[torch.device, str | None] = {}  # why a device cannot be served

    def unusable(self, device: torch.device) -> str | None:
        if device not in self._known:
            self._known[device] = _find_fault(device)
        return self._known[device]

    def correct_(
        self,
        bucket: Bucket,
        reliability: Tensor,
        options: Options,
        twin_dots: Tensor | None = None,
    ) -> Conflicts:
        work = self._work(bucket, Correction if twin_dots is None else Conclusion)
        record: Record = work.record()
        if twin_dots is None:
            work.run(record, reliability, options, self.two_launches)
        else:
            work.run(record, reliability, options, twin_dots, self.two_launches)
        bucket.note_changes()
        return Conflicts(*record, bucket.layout)

    def observe_(
        self, bucket: Bucket, weights: tuple[Rows, Rows], history: History | None
    ) -> RowSums:
        work = self._work(bucket, Observation, *weights, *(history.mean if history else ()))
        self._work(bucket, Conclusion)  # nothing is observed which cannot be corrected then
        rows = bucket.layout.rows
        dot, deviation = (work.new(torch.float64, 2, rows) for _ in range(2))
        sums = dot, deviation, work.new(torch.bool, 2, rows), work.new(torch.float64, rows, 3)
        work.run(sums, history.weight if history else None)
        return RowSums(*sums)

    def rate_and_correct_(
        self,
        bucket: Bucket,
        sums: RowSums,
        effect: Tensor | None,
        sensitivity: Sensitivity,
        groups: Sequence[int],
        options: Options,
        *,
        by_sensitivity: bool,
    ) -> tuple[Tensor, Conflicts]:
        work = self._work(bucket, Conclusion)
        record: Record = work.record()
        r = work.rate_and_run(
            record, sums, effect, sensitivity, groups, by_sensitivity, options, self.two_launches
        )
        bucket.note_changes()
        return r, Conflicts(*record, bucket.layout)

    def _work(self, bucket: Bucket, kind: Any, *operands: Rows) -> Any:
        """What is kept of the last step with the same geometry; else made anew, and compiled."""
        key = f"triton {kind.__name__}"
        work = bucket.memory.get(key)
        if work is None or not work.fits(bucket, operands):
            work = kind(bucket, operands)
            self._compile(work, bucket.device)
            bucket.memory[key] = work
        work.point(bucket, operands)
        return work

    def _compile(self, work: Work, device: torch.device) -> None:
        try:
            work.compile()
        except Exception as error:  # whatever a compiler may say: it is not the caller's fault
            why = f"its kernels do not compile here: {type(error).__name__}: {error}"
            self._known[device] = why
            raise Unavailable(f'backend "triton" on {device}: {why}') from error


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
