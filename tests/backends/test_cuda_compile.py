"""The CUDA kernels compile without a warning and spill no register; this needs nvcc, but no GPU."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from itertools import product
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TARGETS = ("80", "86", "89", "90", "100", "120")  # those of the real build
VERBS = ("observe", "apply", "decide_and_apply")


@pytest.mark.slow
def test_the_kernels_compile_without_warnings_or_spills(tmp_path: Path) -> None:
    if shutil.which("nvcc") is None:
        pytest.skip("no nvcc on PATH: the CUDA kernels were not compiled")
    said = compiled(tmp_path)
    kernels = re.findall(r"entry function '(\w+)' for 'sm_(\d+)'", said)
    for (name, sm), registers in zip(kernels, re.findall(r"Used (\d+) reg", said), strict=True):
        print(f"sm_{sm:<3} {registers:>3} registers  {name}")
    verbs = re.findall(r"entry function '\w+?cuda\d+([a-z_]+)_kernelI\w+' for 'sm_(\d+)'", said)
    assert set(verbs) == set(product(VERBS, TARGETS))
    spills = re.findall(r"(\d+) bytes spill (?:stores|loads)", said)
    assert spills
    assert not any(int(n) for n in spills), said


def compiled(build: Path) -> str:
    """What ptxas says of the kernels, under the flags of the real build and warnings as errors."""
    path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]])
    commands: tuple[list[str | Path], ...] = (
        ["cmake", "-G", "Ninja", "-S", ROOT, "-B", build, f"-DPython_EXECUTABLE={sys.executable}",
         "-DRAGRAD_CUDA_ARCHITECTURES=" + ";".join(f"{sm}-real" for sm in TARGETS),
         "-DRAGRAD_WERROR=ON", "-DCMAKE_CUDA_FLAGS=-Xptxas=-v"],
        ["cmake", "--build", build, "--target", "CMakeFiles/_native.dir/csrc/cuda.cu.o"],
    )  # fmt: skip
    for command in commands:
        done = subprocess.run(
            command, env=os.environ | {"PATH": path}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout
    return done.stdout
