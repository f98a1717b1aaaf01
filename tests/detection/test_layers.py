"""What may import what: the library nothing of the laboratory, training nothing that plots."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def run_without(modules: list[str], script: str, *arguments: str) -> None:
    """Runs a script in a process in which importing any of `modules` fails."""
    block = f"import sys\nsys.modules.update(dict.fromkeys({modules}))\n"
    done = subprocess.run(
        [sys.executable, "-c", block + script, *arguments],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_training_needs_neither_matplotlib_nor_scipy_nor_the_report(tmp_path: Path) -> None:
    run_without(
        ["matplotlib", "scipy", "ragrad_ext.detection.report"],
        "from ragrad_ext.detection.settings import Settings\n"
        "from ragrad_ext.detection.training.train import train\n"
        "import ragrad_ext.detection.jobs\n"
        "tiny = Settings(epochs=1, scenes=1, batch_size=1, width=96, height=96, device='cpu')\n"
        "assert train(tiny, sys.argv[1], progress=False).epochs[0]['loss'] > 0",
        str(tmp_path / "run"),
    )


def test_the_library_needs_nothing_of_the_laboratory() -> None:
    run_without(
        ["ragrad_ext.detection", "torchvision", "PIL", "tqdm", "matplotlib", "scipy"],
        "import ragrad_ext, ragrad_ext.doctor\nragrad_ext.doctor.report()",
    )


def imports(path: Path) -> Iterator[str]:
    """The absolute names of what a file imports, "module.name"."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) + 1 - node.level] if node.level else ()
            module = ".".join([*start, *filter(None, [node.module])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


LABORATORY = sorted((ROOT / "ragrad_ext" / "detection").rglob("*.py"))
LIBRARY = sorted({*(ROOT / "ragrad_ext").rglob("*.py")} - {*LABORATORY})


def test_the_laboratory_imports_public_names_of_the_library() -> None:
    names = {name for path in LABORATORY for name in imports(path)}
    library = {n for n in names if n.startswith("ragrad_ext.") and ".detection" not in n}
    assert library
    assert not [
        name
        for name in library
        if any(p.startswith("_") for p in name.split(".")) and name != "ragrad_ext.__version__"
    ]


def test_only_the_command_line_imports_the_laboratory() -> None:
    found = {p.name for p in LIBRARY for name in imports(p) if ".detection" in name}
    assert found == {"__main__.py"}


def test_training_imports_nothing_of_the_report() -> None:
    training = [p for p in LABORATORY if p.parent.name in ("training", "data", "models")]
    assert len(training) > 10
    assert not [name for p in training for name in imports(p) if ".detection.report" in name]
