"""The CUDA backend compiled for the host (see cuda_shim.h), as one more backend for the tests.

Races between blocks, between threads, and barriers that are missing are found by

    RAGRAD_HOST_FLAGS=-fsanitize=thread LD_PRELOAD=$(g++ -print-file-name=libtsan.so) \\
        python -m pytest tests/backends/test_cuda_logic.py tests/backends/test_cuda_apply.py \\
        -k same_bits
"""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ragrad_ext import reference
from ragrad_ext.backends import History, Rows, RowSums, Sensitivity
from ragrad_ext.rows.bucket import Bucket
from ragrad_ext.rows.conflicts import Conflicts
from ragrad_ext.rules import RaGradRule

HERE = Path(__file__).parent
CSRC = HERE.parents[2] / "csrc"
WARNINGS = ["-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]
FLAGS = ["-std=c++17", "-O1", "-g", "-fno-strict-aliasing", "-ffp-contract=off", *WARNINGS]


class Sizes(NamedTuple):
    """How the work is cut (csrc/cuda_plan.h), small enough for small tensors to take every path."""

    piece_bytes: int = 256
    unit_bytes: int = 512
    row_pieces: int = 50
    layers: int = 2


def build(folder: Path) -> ctypes.CDLL:
    """Compile the kernels for the host; about five seconds."""
    flags = os.environ.get("RAGRAD_HOST_FLAGS", "").split()
    target = folder / "cuda_on_host.so"
    sources = [HERE / "harness.cpp", "-x", "c++", HERE / "cuda_shim.cpp"]
    command = ["g++", *FLAGS, *flags, "-fPIC", "-shared", f"-I{HERE}", f"-I{CSRC}", *sources]
    subprocess.run([*map(str, command), "-pthread", "-o", str(target)], check=True)
    library = ctypes.CDLL(str(target))
    library.ragrad_open.restype = ctypes.c_void_p
    return library


class _Tensor(ctypes.Structure):  # dlpack::Tensor
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("byte_offset", ctypes.c_uint64),
    )


class _Case(ctypes.Structure):
    _fields_ = (
        ("layers", ctypes.c_int),
        ("channels", ctypes.c_void_p),
        ("axes", ctypes.c_void_p),
        ("operands", ctypes.c_void_p * 6),
    )


class _Sizes(ctypes.Structure):
    _fields_ = (
        ("piece_bytes", ctypes.c_int64),
        ("unit_bytes", ctypes.c_int64),
        ("row_pieces", ctypes.c_int64),
        ("layers", ctypes.c_int),
    )


class _Correction(ctypes.Structure):
    _fields_ = (
        ("dual", ctypes.c_bool),
        ("blend", ctypes.c_bool),
        ("eps", ctypes.c_double),
        *((name, ctypes.c_void_p) for name in ("r", "gram", "cosine", "gap", "mask", "strength")),
    )


class _Observation(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_void_p)
        for name in ("step_size", "gram", "g_theta", "deviation", "observed")
    )


class _Mixing(ctypes.Structure):
    _fields_ = (("mix", ctypes.c_void_p),)


class OnHost:
    """A backend for CPU tensors that runs the CUDA kernels.

    Args:
        blocks: how many run at a time.
        seed: of the order in which they run; an odd one lets them start late, too.
        slow_double: add up as on a chip where double is slow.
    """

    name = "cuda on host"

    def __init__(
        self,
        library: ctypes.CDLL,
        blocks: int = 3,
        seed: int = 0,
        sizes: Sizes | None = None,
        slow_double: bool = False,
    ) -> None:
        self.library, self.blocks, self.seed = library, blocks, seed
        self.sizes = sizes or Sizes()
        self.slow_double = slow_double

    def unusable(self, device: torch.device) -> str | None:
        return None

    def open(
        self, bucket: Bucket, weights: tuple[Rows, Rows] | None = None, mean: Any = None
    ) -> Run:
        return Run(self, bucket, weights, mean)

    def observe_(
        self, bucket: Bucket, weights: tuple[Rows, Rows], history: History | None
    ) -> RowSums:
        run = self.open(bucket, weights, history.mean if history else None)
        return run.observe(history.step_size if history else None)

    def apply_(self, bucket: Bucket, mix: Tensor) -> None:
        self.open(bucket).apply(mix)

    def decide_and_apply_(self, bucket: Bucket, reliability: Tensor, rule: RaGradRule) -> Conflicts:
        return self.open(bucket).decide_and_apply(reliability, rule)

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
        r = reference.rate_(sums, effect, sensitivity, groups, by_sensitivity=by_sensitivity)
        return r, self.open(bucket).decide_and_apply(r, rule, sums.gram)


class Run:
    """One table with its workspace, for one call or for many."""

    def __init__(
        self, backend: OnHost, bucket: Bucket, weights: tuple[Rows, Rows] | None, mean: Any
    ) -> None:
        self.backend, self.bucket, self.library = backend, bucket, backend.library
        none = [None] * len(bucket.layout.channels)
        sides = [*bucket.grads, *(weights or (none, none)), *(mean or (none, none))]
        self.kept: list[Any] = []  # what the pointers point at
        channels, axes = self._int64s(bucket.layout.channels), self._int64s(bucket.channel_axes)
        operands = (ctypes.c_void_p * 6)(*[self._side(side) for side in sides])
        case = _Case(len(none), channels, axes, operands)
        sizes = _Sizes(*backend.sizes)
        self.handle = ctypes.c_void_p(
            self.library.ragrad_open(ctypes.byref(case), ctypes.byref(sizes))
        )
        assert self.handle, "the table was refused, see stderr"
        self.launches = 0

    def __del__(self) -> None:
        self.library.ragrad_close(self.handle)

    def observe(self, step_size: Tensor | None, seed: int = 0) -> RowSums:
        rows = self.bucket.layout.rows
        g_theta, deviation = torch.zeros(2, 2, rows, dtype=torch.float64)
        observed = torch.zeros(2, rows, dtype=torch.bool)
        gram = torch.zeros(rows, 3, dtype=torch.float64)
        tensors = (step_size, gram, g_theta, deviation, observed)
        args = _Observation(*[None if x is None else x.data_ptr() for x in tensors])
        self._call(self.library.ragrad_observe, seed, ctypes.byref(args))
        return RowSums(gram, g_theta, deviation, observed)

    def apply(self, mix: Tensor, seed: int = 0) -> None:
        mix = mix.contiguous()
        self._call(self.library.ragrad_apply, seed, ctypes.byref(_Mixing(mix.data_ptr())))

    def decide_and_apply(
        self, reliability: Tensor, rule: RaGradRule, gram: Tensor | None = None, seed: int = 0
    ) -> Conflicts:
        rows = self.bucket.layout.rows
        cosine, gap, strength = torch.zeros(3, rows)
        mask = torch.zeros(rows, dtype=torch.bool)
        reliability = reliability.contiguous()
        tensors = (reliability, gram, cosine, gap, mask, strength)
        args = _Correction(
            rule.identify == "dual",
            rule.resolve == "blend",
            rule.eps,
            *[None if x is None else x.data_ptr() for x in tensors],
        )
        correct = self.library.ragrad_decide_and_apply
        self._call(correct, seed, ctypes.byref(args), self.backend.slow_double)
        return Conflicts(cosine, gap, mask, strength, self.bucket.layout)

    def _call(self, verb: Any, seed: int, *args: Any) -> None:
        self.launches = verb(self.handle, self.backend.seed + seed, *args)
        assert self.library.ragrad_ready(self.handle), (
            "counters were left unfit for the next launch"
        )

    def _int64s(self, values: Sequence[int]) -> int:
        array = (ctypes.c_int64 * len(values))(*values)
        self.kept.append(array)
        return ctypes.addressof(array)

    def _side(self, side: Rows) -> int:
        array = (_Tensor * len(side))()
        for slot, x in zip(array, side, strict=True):
            if x is None or x.numel() == 0:
                continue
            shape, strides = self._int64s(x.shape), self._int64s(x.stride())
            code = 4 if x.dtype == torch.bfloat16 else 2
            device = self.backend.blocks  # device n runs n blocks at a time
            bits = 8 * x.element_size()
            slot.__init__(x.data_ptr(), 2, device, x.ndim, code, bits, 1, shape, strides, 0)
        self.kept.append(array)
        return ctypes.addressof(array)
