"""What the tests of the Triton backend share."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ragrad_ext.backends.triton import plan
from ragrad_ext.backends.triton import verb as triton_verb
from ragrad_ext.backends.triton.tuning import Tuning
from ragrad_ext.rows.conflicts import Conflicts

from . import cases, parity
from .tolerances import RESULT, TRUNCATED

CPU = torch.device("cpu")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SLOW = pytest.mark.slow  # the interpreter is; the fast tests have a case of every kind
USUAL = Tuning(), 1
# Rows in many pieces, layers in many units, more blocks than one.
SMALL = Tuning(plan.Limits(4096, 2048, 8, 2)), 3


class Counting:
    """A kernel that notes its launches."""

    def __init__(self, kernel: Any) -> None:
        self.kernel, self.grids = kernel, list[tuple[int, ...]]()
        self.arguments: dict[str, Any] = {}  # of the last one
        self.warmup = kernel.warmup

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        self.grids.append(grid)

        def launch(**arguments: Any) -> None:
            self.arguments = arguments
            self.kernel[grid](**arguments)

        return launch


def tune(patch: pytest.MonkeyPatch, how: tuple[Tuning, int]) -> None:
    patch.setattr(triton_verb, "device_of", lambda device: how)


def tolerance() -> dict[torch.dtype, float]:
    """Of a corrected row, as this version of the interpreter stores it."""
    from .interpreter import rounds

    return RESULT if rounds() else RESULT | {torch.bfloat16: TRUNCATED}


def compare(*arguments: Any, **options: Any) -> tuple[int, int]:
    """`parity.compare`, in the interpreter."""
    return parity.compare(*arguments, **options, tolerance=tolerance())


def compare_mixing(*arguments: Any) -> None:
    """`parity.compare_mixing`, in the interpreter."""
    parity.compare_mixing(*arguments, tolerance=tolerance())


def found(record: Conflicts) -> list[Tensor]:
    return [record.cosine, record.gap, record.mask, record.strength]


def layers(*shapes: tuple[int, int], agreement: float = -0.5) -> cases.Pairs:
    pairs = [cases.twins(*s, seed=i, agreement=agreement) for i, s in enumerate(shapes)]
    return [p[0][0] for p in pairs], [p[1][0] for p in pairs]
