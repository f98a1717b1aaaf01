"""How the Triton kernels are launched, per architecture.

A committed table instead of autotuning at the user's first step.
"""

from __future__ import annotations

from typing import NamedTuple

from .plan import Limits


class Tuning(NamedTuple):
    """Launch parameters of an architecture.

    Attributes:
        limits: how finely the work is cut.
        registers: of a thread, at most.
        correct_warps, observe_warps: of a block; "correct" are all verbs that write gradients.
        correct_blocks, observe_blocks: per multiprocessor. Extra blocks wait; this is harmless.
    """

    limits: Limits = Limits()
    registers: int = 128
    correct_warps: int = 8
    correct_blocks: int = 2
    observe_warps: int = 8
    observe_blocks: int = 2


# By compute capability. What is not listed gets the defaults, which were never measured.
TABLE: dict[tuple[int, int], Tuning] = {}


def tuning(capability: tuple[int, int]) -> Tuning:
    return TABLE.get(capability, Tuning())
