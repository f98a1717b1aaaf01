"""What the installed version of Triton's interpreter can do, found by trying it on tiny kernels.

Import it in a process that interprets: `tests.lib.interpreted`.
"""

# mypy: allow-untyped-defs

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

VERSIONS = f"triton {triton.__version__} with numpy {np.__version__}"


@triton.jit
def count_up(bound, out):
    n = 0
    for _ in range(0, tl.load(bound), 2):
        n += 1
    tl.store(out, n)


@triton.jit
def convert(x, y, DTYPE: tl.constexpr):
    tl.store(y, tl.load(x).to(DTYPE))


@functools.cache
def loops() -> bool:
    """Whether a loop may end where a kernel has read that it ends."""
    out = torch.zeros(1, dtype=torch.int64)
    try:
        count_up[(1,)](torch.tensor([6]), out)
    except Exception:  # of whatever kind: it cannot
        return False
    return out.item() == 3


@functools.cache
def rounds() -> bool:
    """Whether float32 becomes the nearest bfloat16."""
    x = torch.tensor([1 + 2**-8 + 2**-9])  # between 1 and 1 + 2^-7, nearer to the latter
    y = torch.zeros(1, dtype=torch.bfloat16)
    convert[(1,)](x, y, tl.bfloat16)
    return y.item() == 1 + 2**-7


def require_loops() -> None:
    if not loops():
        pytest.skip(f"{VERSIONS}: the interpreter cannot loop up to a bound that a kernel loaded")


def require_rounding() -> None:
    if not rounds():
        pytest.skip(f"{VERSIONS}: the interpreter cuts float32 off instead of rounding to bfloat16")
