"""Compiles the Triton kernels for devices that are not there.

    python -m tests.lib.triton_ahead SM...

One line of JSON for every kernel. They are compiled as a first step on that device would have them
compiled, by a driver that can name its device and do nothing else.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget

from ragrad_ext.backends.triton import verb as triton_verb
from ragrad_ext.backends.triton.apply import Apply
from ragrad_ext.backends.triton.decide_and_apply import DecideAndApply
from ragrad_ext.backends.triton.launch import Launch, compile_
from ragrad_ext.backends.triton.observe import Observe
from ragrad_ext.backends.triton.rate_and_apply import RateAndApply
from ragrad_ext.backends.triton.tuning import tuning
from ragrad_ext.rows.bucket import Bucket
from ragrad_ext.rows.sums import RowSums, Sensitivity
from ragrad_ext.rules import RaGradRule

from . import cases
from .parity import bucket_of

FLOAT, BRAIN, HALF = torch.float32, torch.bfloat16, torch.float16
# Gradient, weight and mean of an observation: what is usual first, then one type another.
KINDS = [
    (FLOAT, FLOAT, FLOAT),
    (BRAIN, BRAIN, FLOAT),
    (HALF, HALF, FLOAT),
    (FLOAT, FLOAT, BRAIN),
    (BRAIN, BRAIN, BRAIN),
    (BRAIN, FLOAT, FLOAT),
    (HALF, FLOAT, FLOAT),
]


class Driver:
    """In place of a CUDA driver."""

    def __init__(self, sm: int) -> None:
        self.sm = sm

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.sm, 32)

    def get_current_device(self) -> int:
        return self.sm  # kernels are kept by device

    def get_current_stream(self, device: int) -> int:
        return 0


def twins(dtype: torch.dtype, walk: bool) -> tuple[Bucket, list[Tensor]]:
    rgb, ir = (
        [cases.cast(cases.transposed(x) if walk else x, dtype) for x in side]
        for side in cases.twins(4, 3, 5)
    )
    return bucket_of(rgb, ir), rgb


def steps(usual: bool) -> Iterator[tuple[str, list[Launch]]]:
    """The launches of every verb, by the types that it is compiled for."""
    for walk in (False,) if usual else (False, True):
        for g in (FLOAT,) if usual else (FLOAT, BRAIN, HALF):
            bucket, _ = twins(g, walk)
            for launches in corrections(bucket):
                yield named([g], walk), launches
        for g, w, m in KINDS[:1] if usual else KINDS:
            bucket, like = twins(g, walk)
            operands = [[x.to(t) for x in like] for t in (w, w, m, m)]
            observe = Observe(bucket, operands)
            yield named([g, w, m], walk), observe.point() + observe.launches(observe.sums(), None)


def corrections(bucket: Bucket) -> Iterator[list[Launch]]:
    rows, zero = bucket.layout.rows, torch.zeros(2, bucket.layout.rows, dtype=torch.float64)
    apply, decide, rate = Apply(bucket), DecideAndApply(bucket), RateAndApply(bucket)
    yield apply.point() + apply.launches(zero.new_zeros(rows, 2, 2))
    yield decide.point() + decide.launches(decide.record(), zero.float(), RaGradRule())
    sums = RowSums(zero.new_zeros(rows, 3), zero, zero, zero.bool())
    state = Sensitivity(zero, zero, 0.9)
    yield rate.point() + rate.launches(
        rate.record(), zero.float(), sums, None, state, (rows,), RaGradRule(), True
    )


def named(dtypes: list[torch.dtype], walk: bool) -> str:
    return ", ".join([str(d).removeprefix("torch.") for d in dtypes] + ["walk"] * walk)


def resources(cubin: bytes) -> dict[str, int]:
    """Registers, stack and local memory as cuobjdump reads them: the most of any function."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        tool = triton.knobs.nvidia.cuobjdump.path
        said = subprocess.check_output([tool, "--dump-resource-usage", file.name], text=True)
    kinds = ("REG", "STACK", "LOCAL")
    return {kind: max(map(int, re.findall(rf"{kind}:(\d+)", said))) for kind in kinds}


def unguarded(ptx: str) -> int:
    """How many releases come without a barrier of the block since its last stores or call."""
    found, guarded = 0, False
    for line in ptx.splitlines():
        if re.search(r"\bbar(rier)?\.(cta\.)?sync\b", line):
            guarded = True
        elif re.search(r"\bst\.global|\bcall\b", line):
            guarded = False
        elif re.search(r"\batom\.global\.gpu\.(acq_rel|release)", line):
            found += not guarded
    return found


def open_ends(ptx: str, function: str) -> int:
    """How many of the functions so named return without a barrier since their last stores."""
    bodies = re.findall(
        rf"^\.func[^{{;]*_{function}__[^{{;]*\{{.*?^\}}", ptx, re.DOTALL | re.MULTILINE
    )
    assert bodies, f"there is no {function}"
    return sum("bar.sync" not in body[body.rfind("st.global") :] for body in bodies)


def compiled(name: str, launches: list[Launch]) -> Iterator[dict[str, Any]]:
    """What a first step compiles."""
    kernels: list[Any] = []
    loads = triton.compiler.CompiledKernel
    loads.run = property(kernels.append)  # in place of loading it onto the device
    compile_(launches, torch.device("cpu"))
    for kernel in kernels:
        ptx = kernel.asm["ptx"]
        yield {
            "name": f"{kernel.metadata.name}: {name}",
            "warps": kernel.metadata.num_warps,
            "shared": kernel.metadata.shared,
            **resources(kernel.asm["cubin"]),
            "vector loads": len(re.findall(r"ld\.global(?:\.\w+)*\.v4\.b32", ptx)),
            "vector stores": len(re.findall(r"st\.global(?:\.\w+)*\.v[24]\.b32", ptx)),
            "acquires": len(re.findall(r"(?:ld|atom)\.global\.gpu\.acquire", ptx)),
            "unguarded releases": unguarded(ptx),
            "open ends": open_ends(ptx, "rate_layer")
            if kernel.metadata.name == "rate_and_apply"
            else 0,
            "read-only loads": ptx.count("ld.global.nc"),
            "atomics": sorted(set(re.findall(r"\b(?:atom|red)\.[\w.:]+", ptx))),
        }


def main(*arguments: str) -> None:
    usual = "--usual" in arguments
    for sm in [int(a) for a in arguments if a != "--usual"]:
        triton.runtime.driver.set_active(Driver(sm))
        tuned = tuning((sm // 10, sm % 10))
        triton_verb.device_of = lambda device, tuned=tuned: (tuned, 1)
        for name, launches in steps(usual):
            for row in compiled(name, launches):
                print(json.dumps({"sm": sm, **row}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
