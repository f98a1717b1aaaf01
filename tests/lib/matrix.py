"""One wheel beside every version of torch that is promised.

    python -m tests.lib.matrix              all; writes benchmarks/results/versions.json
    python -m tests.lib.matrix --quick      the oldest alone, the cheap part; writes nothing

Builds the wheel as a release would, without CUDA kernels and without torch in the build's
environment, and installs it from its package into an environment for each torch. Those are kept in
build/matrix/, some GB each, and tested side by side. The tests there are a copy of tests/, out of
reach of this checkout: what they import is the wheel.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

from benchmarks import record

ROOT = Path(__file__).parents[2]
HOME = ROOT / "build" / "matrix"
PACKAGES = (  # that the wheel and its tests need
    "numpy>=1.26",
    "torchvision",
    "tqdm>=4.66",
    "pytest>=8",
    "pytest-benchmark>=5",
    "hypothesis>=6.100",
    "setuptools>=77",
)
CORE = (
    "tests/pairs",
    "tests/rows",
    "tests/rules",
    "tests/estimators",
    "tests/test_audit.py",
    "tests/test_correct.py",
    "tests/test_doctor.py",
    "tests/test_repa.py",
    "tests/test_training.py",
)
NATIVE = "tests/backends/test_native.py", "tests/backends/test_operators.py"
TRITON = "tests/backends/triton"
AHEAD = "tests/backends/triton/test_compile.py"
FAST = "-m", "not slow and not data"
KERNELS = {"observe", "apply", "decide_and_apply", "rate_and_apply", "point"}

ABOUT = """
import json, platform
import numpy, torch, triton
import ragrad_ext
from ragrad_ext import _native
print(json.dumps({
    "python": platform.python_version(), "torch": torch.__version__,
    "triton": triton.__version__, "numpy": numpy.__version__,
    "files": [ragrad_ext.__file__, _native.__file__],
}))
"""


class Version(NamedTuple):
    """A torch, which brings its triton, and what else must not be newer beside it."""

    torch: str
    constraints: tuple[str, ...] = ()


# The interpreter of triton 3.6 cannot loop beside numpy 2.4 or newer.
VERSIONS = (Version("2.10.0", ("numpy<2.4",)), Version("2.11.0", ("numpy<2.4",)), Version("2.15.0"))


class Failed(Exception):
    """A step of a version went wrong, and said why above."""


class Environment:
    """A version installed for itself, with the wheel, and a copy of the tests."""

    def __init__(self, version: Version, wheel: Path) -> None:
        self.folder = HOME / f"torch-{version.torch}-{sys.implementation.cache_tag}"
        self.python = self.folder / "bin" / "python"
        self.tests = self.folder / "checkout"
        self.install(version)
        self.pip("--force-reinstall", "--no-deps", wheel)
        shutil.rmtree(self.tests, ignore_errors=True)
        leave = shutil.ignore_patterns("__pycache__", "*.so")
        for name in ("tests", "docs"):  # a test reads a page
            shutil.copytree(ROOT / name, self.tests / name, ignore=leave)
        shutil.copy(ROOT / "pyproject.toml", self.tests)  # how pytest is run

    def install(self, version: Version) -> None:
        """The packages, unless they are there."""
        wanted = "\n".join([f"torch=={version.torch}", *PACKAGES, *version.constraints]) + "\n"
        kept = self.folder / "installed.txt"
        if kept.is_file() and kept.read_text() == wanted:
            return
        shutil.rmtree(self.folder, ignore_errors=True)
        self.run(sys.executable, "-m", "venv", self.folder, cwd=ROOT)
        # In place of a constraint of the machine, which may name another torch.
        self.constraints.write_text("\n".join([*version.constraints, ""]))
        self.pip(f"torch=={version.torch}", *PACKAGES)
        kept.write_text(wanted)

    @property
    def constraints(self) -> Path:
        return self.folder / "constraints.txt"

    def pip(self, *arguments: str | Path) -> None:
        command = self.python, "-m", "pip", "install", "--quiet", "--no-compile", *arguments
        self.run(*command, cwd=self.folder, PIP_CONSTRAINT=str(self.constraints))

    def run(self, *command: str | Path, cwd: Path | None = None, **environment: str) -> str:
        """What the command prints; what it says to stderr is seen at once."""
        print("+", *command, flush=True)
        # nothing that would lead Python to the checkout
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "TRITON_"))}
        done = subprocess.run(
            [str(c) for c in command],
            cwd=cwd or self.tests,
            env=clean | {"OMP_NUM_THREADS": "1"} | environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        if done.returncode:
            print(done.stdout)
            raise Failed(f"{self.folder.name}: exit status {done.returncode}")
        return done.stdout

    def about(self) -> dict[str, str]:
        """Versions; that what is imported is what was installed is made sure of."""
        found: dict[str, Any] = json.loads(self.run(self.python, "-c", ABOUT))
        for file in found.pop("files"):
            if not Path(file).resolve().is_relative_to((self.folder / "lib").resolve()):
                raise Failed(f"{self.folder.name}: {file} is not of the wheel")
        return found

    def doctor(self) -> None:
        said = self.run(self.python, "-m", "ragrad_ext", "doctor")
        if not all(f"  {name:<11}works" in said for name in ("native", "reference")):
            print(said)
            raise Failed(f"{self.folder.name}: not every backend works that should")

    def pytest(self, *arguments: str, **environment: str) -> dict[str, Any]:
        """How many tests passed, and which were skipped, by the reason."""
        report = self.folder / "report.xml"
        options = "-q", "--tb=short", "-p", "no:cacheprovider", f"--junitxml={report}"
        said = self.run(self.python, "-m", "pytest", *options, *arguments, **environment)
        print(f"{self.folder.name}: {said.splitlines()[-1]}", flush=True)
        cases = list(ElementTree.parse(report).iter("testcase"))
        skips = Counter(s.get("message", "") for case in cases for s in case.iter("skipped"))
        return {"passed": len(cases) - skips.total(), "skipped": dict(skips)}

    def compile_ahead(self) -> None:
        """Every Triton kernel for its usual types, for the oldest GPU."""
        said = self.run(self.python, "-m", "tests.lib.triton_ahead", "--usual", "80")
        kernels = {json.loads(line)["name"].partition(":")[0] for line in said.splitlines()}
        if kernels != KERNELS:
            raise Failed(f"{self.folder.name}: of {KERNELS} were compiled {kernels}")


def build_wheel() -> Path:
    folder = HOME / "wheel"
    shutil.rmtree(folder, ignore_errors=True)
    command = sys.executable, "-m", "build", "--outdir", str(folder), str(ROOT)
    settings = {"RAGRAD_NATIVE": "require", "RAGRAD_CUDA": "off"}
    subprocess.run(command, check=True, env=os.environ | settings)
    (wheel,) = folder.glob("*.whl")
    print(f"{wheel.name}, {wheel.stat().st_size / 1e6:.1f} MB", flush=True)
    return wheel


def check_quickly(environment: Environment) -> None:
    environment.about()
    environment.doctor()
    environment.pytest(*FAST, "tests/rules", "tests/test_correct.py", NATIVE[0])
    environment.compile_ahead()


def check(environment: Environment) -> dict[str, Any]:
    about = environment.about()
    environment.doctor()
    tests = {
        "core": environment.pytest(*FAST, *CORE),
        "native": environment.pytest(*FAST, *NATIVE),
        "triton, interpreted": environment.pytest(*FAST, TRITON, TRITON_INTERPRET="1"),
        "triton, compiled ahead": environment.pytest(AHEAD),
    }
    return {**about, "date": datetime.date.today().isoformat(), "tests": tests}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the cheap part, beside the oldest")
    quick = parser.parse_args().quick
    wheel = build_wheel()
    try:
        if quick:
            check_quickly(Environment(VERSIONS[0], wheel))
        else:
            with ThreadPoolExecutor(len(VERSIONS)) as pool:
                rows = list(pool.map(lambda version: check(Environment(version, wheel)), VERSIONS))
            record.write(ROOT / "benchmarks/results/versions.json", "tests.lib.matrix", rows)
    except Failed as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
