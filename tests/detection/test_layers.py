"""What may import what: the library nothing of the laboratory, training nothing that plots."""

from __future__ import annotations

import os
import subprocess
import sys
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


@pytest.mark.parametrize("path", sorted((ROOT / "ragrad_ext" / "detection").rglob("*.py")))
def test_the_laboratory_uses_no_private_name_of_the_library(path: Path) -> None:
    words = path.read_text().split()
    assert not [word for word in words if word.startswith("ragrad_ext._")]
