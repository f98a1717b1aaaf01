"""The build of the compiled part. Everything declarative is in pyproject.toml.

CMake (CMakeLists.txt) compiles `ragrad_ext._native`, which needs a C++ compiler. Where that fails,
the installation is pure Python and says so. In the environment:

    RAGRAD_NATIVE=require               a module that cannot be compiled is an error
    RAGRAD_NATIVE=off                   nothing is compiled
    RAGRAD_CUDA=off                     no CUDA kernels, even where nvcc is found
    RAGRAD_CUDA_ARCHITECTURES="80;90"   for these alone: a faster build
    RAGRAD_WERROR=on                    warnings are errors
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

ROOT = Path(__file__).resolve().parent
MODE = os.environ.get("RAGRAD_NATIVE", "auto")
OPTIONS = {"RAGRAD_CUDA": "on", "RAGRAD_CUDA_ARCHITECTURES": "", "RAGRAD_WERROR": "off"}

FAILED = """ragrad_ext._native was not compiled: {why}.
  What is installed is pure Python and works with the reference backend, which is slow.
  The native backend needs GCC 9 or newer, or Clang, and the headers of Python: install them, and
  this again. RAGRAD_NATIVE=require in the environment makes a failure an error."""


class BuildNative(build_ext):
    """Compiles with CMake and ninja."""

    def run(self) -> None:
        if not self.extensions:
            return
        module = Path(self.get_ext_fullpath(self.extensions[0].name))
        module.unlink(missing_ok=True)  # one of an earlier build must not outlive a failure
        try:
            compile_native(module)
        except CompileError as error:
            if MODE == "require":
                raise
            self.warn(FAILED.format(why=error))
            self.go_without()

    def go_without(self) -> None:
        """What is installed is pure Python, and a wheel says so in its tag."""
        self.extensions = self.distribution.ext_modules = []
        wheel = self.distribution.get_command_obj("bdist_wheel", create=False)
        if wheel:
            wheel.root_is_pure = True


def compile_native(module: Path) -> None:
    """Writes the compiled module, or raises CompileError."""
    # This folder stays: a second build is a short one.
    build = ROOT / "build" / f"native-{sys.implementation.cache_tag}"
    options = {name: os.environ.get(name, default) for name, default in OPTIONS.items()}
    configure(build, options)
    try:
        run("the compiler failed", tool("cmake"), "--build", build)
    except CompileError:
        if MODE == "require" or options["RAGRAD_CUDA"].lower() == "off":
            raise
        # Perhaps it was nvcc: the kernels of the CPU are worth another try.
        configure(build, {**options, "RAGRAD_CUDA": "off", "without_cuda": "nvcc failed"})
        run("the compiler failed", tool("cmake"), "--build", build)
    module.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(build / module.name, module)


def configure(build: Path, options: dict[str, str]) -> None:
    # What CMake remembers is of the temporary environment of an earlier build.
    (build / "CMakeCache.txt").unlink(missing_ok=True)
    settings = {"CMAKE_MAKE_PROGRAM": tool("ninja"), "Python_EXECUTABLE": sys.executable, **options}
    defines = [f"-D{name}={value}" for name, value in settings.items()]
    run("CMake failed", tool("cmake"), "-S", ROOT, "-B", build, "-G", "Ninja", *defines)


def tool(name: str) -> str:
    """Where a program of the build environment is."""
    path = os.pathsep.join([os.environ.get("PATH", ""), sysconfig.get_path("scripts")])
    found = shutil.which(name, path=path)
    if found is None:
        raise CompileError(f"{name} is missing: pip install {name}")
    return found


def run(failure: str, *command: str | Path) -> None:
    try:
        subprocess.run(command, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise CompileError(f"{failure}, and said why above") from error


if MODE not in ("auto", "require", "off"):
    raise SystemExit(f"RAGRAD_NATIVE={MODE}: use require, off, or auto, the default")
setup(
    ext_modules=[] if MODE == "off" else [Extension("ragrad_ext._native", sources=[])],
    cmdclass={"build_ext": BuildNative},
)
