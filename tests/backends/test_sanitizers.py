"""The CPU kernels under AddressSanitizer, UBSan and ThreadSanitizer."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
Run = Callable[..., subprocess.CompletedProcess[str]]

pytestmark = pytest.mark.slow


def runtime(name: str) -> str:
    """The shared library that must be loaded before a Python that is not instrumented."""
    compiler = shutil.which("g++")
    if compiler is None or sys.platform != "linux":
        pytest.skip("no g++ on Linux, no sanitizer")
    path = subprocess.run(
        [compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True
    ).stdout.strip()
    if not Path(path).is_absolute():
        pytest.skip(f"g++ comes without {name}")
    return path


def build(where: Path, sanitizers: str, libraries: list[str]) -> Run:
    """A copy of the package around an instrumented module; returns what runs Python there."""
    settings = {
        "CMAKE_CXX_COMPILER": "g++",
        "CMAKE_BUILD_TYPE": "RelWithDebInfo",
        "Python_EXECUTABLE": sys.executable,
        "RAGRAD_SANITIZE": sanitizers,
        "RAGRAD_CUDA": "OFF",
    }
    tools = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    defines = [f"-D{name}={value}" for name, value in settings.items()]
    for command in (
        ["cmake", "-G", "Ninja", "-S", ROOT, "-B", where / "build", *defines],
        ["cmake", "--build", where / "build"],
    ):
        subprocess.run(command, check=True, env=tools)
    leave = shutil.ignore_patterns("_native*", "__pycache__", "detection")
    shutil.copytree(ROOT / "ragrad_ext", where / "ragrad_ext", ignore=leave)
    shutil.copytree(ROOT / "tests", where / "tests", ignore=leave)
    shutil.copy(ROOT / "pyproject.toml", where)
    (module,) = (where / "build").glob("_native*.so")
    shutil.copy(module, where / "ragrad_ext")
    environment = {
        **os.environ,
        "PYTHONPATH": str(where),
        "LD_PRELOAD": " ".join(libraries),
        "ASAN_OPTIONS": "detect_leaks=0",  # Python itself leaves much for the end
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
        "TSAN_OPTIONS": "halt_on_error=1",  # a report takes seconds
    }

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *arguments], cwd=where, env=environment, capture_output=True, text=True
        )

    return run


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Run:
    libraries = [runtime("libasan.so"), runtime("libubsan.so")]
    return build(tmp_path_factory.mktemp("address"), "address,undefined", libraries)


@pytest.fixture(scope="module")
def thread(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return build(tmp_path_factory.mktemp("thread"), "thread", [runtime("libtsan.so")])


def test_the_parity_cases_touch_no_memory_but_their_own(address: Run) -> None:
    done = address("-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/backends/test_native.py")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout


def test_reading_memory_that_is_gone_would_be_seen(address: Run) -> None:
    done = address(
        "-c",
        "import torch; from ragrad_ext import compiled\n"
        "twins = compiled.module.RowTable(torch.Tensor, [4], [0])\n"
        "rgb, ir = torch.randn(4, 8), torch.randn(4, 8)\n"
        "twins.set([rgb], [ir])\n"
        "rgb.untyped_storage().resize_(0)\n"
        "isa = compiled.module.instruction_sets()[0]\n"
        "mix = torch.ones(4, 2, 2, dtype=torch.float64)\n"
        "twins.apply(mix=mix, instruction_set=isa, threads=1)\n",
    )
    assert "AddressSanitizer: heap-use-after-free" in done.stderr


def test_threads_do_not_race(thread: Run) -> None:
    done = thread("tests/lib/thread_stress.py")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "ThreadSanitizer" not in done.stderr
    assert done.stdout.count("conflicts") == 3


def test_a_race_would_be_seen(thread: Run) -> None:
    assert "ThreadSanitizer: data race" in thread("tests/lib/thread_stress.py", "race").stderr
