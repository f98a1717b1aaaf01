"""Triton's kernels run by its interpreter: on the CPU, one block after the other."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch

KERNELS = ("rows", "correct", "observe", "rate", "conclude")
PACKAGE = "ragrad_ext.backends.triton"


@contextmanager
def interpreted() -> Iterator[None]:
    """Within: the backend's kernels are interpreted. Outside: nothing has changed.

    What decides is TRITON_INTERPRET when a kernel's module is imported; so they are imported anew.
    """
    package = importlib.import_module(PACKAGE)
    with pytest.MonkeyPatch.context() as patch:
        _forget(package)
        tl = importlib.import_module("triton.language")
        from triton.runtime.interpreter import InterpretedFunction, InterpreterBuilder

        for name in (
            "sum",
            "cumsum",
            "max",
        ):  # the kernels' own functions are not all that they call
            patch.setattr(tl, name, InterpretedFunction(getattr(tl, name).fn))
        patch.setenv("TRITON_INTERPRET", "1")
        patch.setattr(InterpreterBuilder, "cast_impl", _rounding(InterpreterBuilder.cast_impl, tl))
        for name in KERNELS:
            importlib.import_module(f"{PACKAGE}.{name}")
        patch.delenv("TRITON_INTERPRET")
        try:
            with np.errstate(all="ignore"):  # 0/0 is nan in a kernel, not a warning
                yield
        finally:
            _forget(package)


def _forget(package: Any) -> None:
    for name in KERNELS:
        sys.modules.pop(f"{PACKAGE}.{name}", None)
        package.__dict__.pop(name, None)


def _rounding(cast: Any, tl: Any) -> Any:
    """The interpreter truncates float32 to bfloat16 and reads subnormal bfloat16 wrongly; a GPU
    rounds to nearest even and reads them right, as PyTorch does."""

    def cast_impl(self: Any, src: Any, dst_type: Any) -> Any:
        types = src.dtype.scalar, dst_type.scalar
        if types not in ((tl.float32, tl.bfloat16), (tl.bfloat16, tl.float32)):
            return cast(self, src, dst_type)
        data = torch.from_numpy(np.ascontiguousarray(src.data))
        if types[0] == tl.float32:
            data = data.to(torch.bfloat16).view(torch.int16)
            return type(src)(data.numpy().view(np.uint16), tl.bfloat16)
        data = data.view(torch.int16).view(torch.bfloat16).float()
        return type(src)(data.numpy(), tl.float32)

    return cast_impl
