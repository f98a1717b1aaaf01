"""The build: an isolated one has the compiled module; one without a compiler works and says why."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = ("csrc", "ragrad_ext", "setup.py", "pyproject.toml", "CMakeLists.txt",
           "MANIFEST.in", "README.md", "CHANGELOG.md")  # fmt: skip
pytestmark = pytest.mark.slow


def run(*command: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command, with the programs of this Python's environment on PATH."""
    path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]])
    return subprocess.run(
        command, cwd=cwd, env=os.environ | {"PATH": path, **environment}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def run_installed(site: Path, *arguments: str) -> str:
    """What Python says with the package from ``site``, and never with that of this checkout."""
    path = os.pathsep.join([str(site), sysconfig.get_path("purelib")])
    # -S: no .pth file, hence no editable installation
    return run(sys.executable, "-S", *arguments, cwd=site, PYTHONPATH=path).stdout


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sources, without anything that was built."""
    folder = tmp_path_factory.mktemp("checkout")
    ignore = shutil.ignore_patterns("*.so", "__pycache__")
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=ignore)
        else:
            shutil.copy(source, folder)
    return folder


NON_FINITE = """
import torch
from ragrad_ext import Reliability, correct_

tiny = torch.tensor(1e-310, dtype=torch.float64)
assert float(tiny / 2) == 1e-310 / 2 > 0, "denormals are flushed"
g = torch.Generator().manual_seed(0)
rgb = [torch.randn(16, 9, generator=g) for _ in range(4)]
ir = [torch.randn(16, 9, generator=g) - x for x in rgb]
for l, bad in enumerate((float("inf"), -float("inf"), float("nan"))):
    rgb[l][l, 5] = bad
given = Reliability(*([torch.rand(16, generator=g) for _ in rgb] for _ in range(2)))
new = [x.clone() for x in rgb + ir]
found = correct_(new[:4], new[4:], given, backend="native")
for l, (a, b) in enumerate(zip(new, rgb + ir, strict=True)):
    assert torch.equal(a.view(torch.int32), b.view(torch.int32)) or l % 4 == 3, l
assert found.count() == found.layer(3).mask.sum() > 0
print("non-finite pairs are as they were")
"""


def test_an_isolated_build_has_the_compiled_module(checkout: Path, tmp_path: Path) -> None:
    """And the right one, whatever the environment asks of the compiler."""
    fast = "-Ofast -ffast-math -funsafe-math-optimizations"
    built = run(
        sys.executable, "-m", "build", "--outdir", tmp_path, checkout, cwd=tmp_path,
        RAGRAD_NATIVE="require", RAGRAD_WERROR="on", RAGRAD_CUDA="off",
        CXXFLAGS=fast, CFLAGS=fast, LDFLAGS="-ffast-math",
    )  # fmt: skip
    assert built.returncode == 0, built.stdout
    assert re.search(r"CMAKE_CXX_FLAGS had\s+-Ofast;-ffast-math;", built.stdout)
    assert re.search(r"CMAKE_MODULE_LINKER_FLAGS had\s+-ffast-math", built.stdout)
    assert "CUDA kernels: none, RAGRAD_CUDA was off" in built.stdout

    (source,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(source) as tar:
        inside = {name.partition("/")[2] for name in tar.getnames()}
    assert {"CMakeLists.txt", "csrc/bindings.cpp", "csrc/table.h"} <= inside

    (wheel,) = tmp_path.glob("*.whl")
    assert sysconfig.get_platform().replace("-", "_") in wheel.name
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    code = "from ragrad_ext import _native as n; print(n.__file__); print(n.cuda_unusable(0))"
    said = run_installed(tmp_path / "site", "-c", code)
    assert str(tmp_path / "site") in said
    assert "RAGRAD_CUDA was off" in said
    said = run_installed(tmp_path / "site", "-c", NON_FINITE)
    assert said == "non-finite pairs are as they were\n"


def test_without_a_compiler_the_installation_is_pure_python(checkout: Path, tmp_path: Path) -> None:
    install: list[str | Path]
    install = [sys.executable, "-m", "pip", "install", "-v", "--no-deps", "--target", tmp_path]
    installed = run(*install, checkout, cwd=tmp_path, CXX="/nonexistent/c++", RAGRAD_NATIVE="auto")
    assert installed.returncode == 0, installed.stdout
    assert "environment variable CXX" in installed.stdout
    assert "ragrad_ext._native was not compiled" in installed.stdout
    assert "works with the reference backend" in installed.stdout
    assert not list(tmp_path.rglob("_native*.so"))
    (wheel,) = tmp_path.glob("*.dist-info/WHEEL")
    assert "Tag: py3-none-any" in wheel.read_text()

    doctor = run_installed(tmp_path, "-m", "ragrad_ext", "doctor")
    assert "reference  works" in doctor
    assert "native     no: " in doctor

    demanded = run(
        *install, checkout, cwd=tmp_path, CXX="/nonexistent/c++", RAGRAD_NATIVE="require"
    )
    assert demanded.returncode != 0
    assert "environment variable CXX" in demanded.stdout


@pytest.mark.skipif(platform.machine() != "x86_64", reason="one instruction set only")
def test_no_function_of_one_instruction_set_can_stand_in_for_another(tmp_path: Path) -> None:
    """Of weak functions with one name the linker keeps any one, perhaps the AVX-512 one."""
    configured = run(
        "cmake", "-G", "Ninja", "-S", ROOT, "-B", tmp_path, "-DRAGRAD_CUDA=OFF",
        f"-DPython_EXECUTABLE={sys.executable}", cwd=tmp_path,
    )  # fmt: skip
    assert configured.returncode == 0, configured.stdout
    rows = ("rows_avx2", "rows_avx512")
    built = run("cmake", "--build", ".", "--target", *rows, cwd=tmp_path)
    assert built.returncode == 0, built.stdout
    for isa in rows:
        symbols = run("nm", f"CMakeFiles/{isa}.dir/csrc/rows.cpp.o", cwd=tmp_path).stdout
        assert f"kernels_{isa.removeprefix('rows_')}" in symbols
        assert not [line for line in symbols.splitlines() if " W " in line or " u " in line]
