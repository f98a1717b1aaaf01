"""The doctor says what works, and why the rest does not."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

import ragrad_ext
from ragrad_ext import backends, compiled, doctor
from ragrad_ext.__main__ import main


def test_the_command_prints_versions_and_backends() -> None:
    out = subprocess.run(
        [sys.executable, "-m", "ragrad_ext", "doctor"], capture_output=True, text=True, check=True
    ).stdout
    assert ragrad_ext.__version__ in out
    assert torch.__version__ in out
    assert "backends on cpu" in out
    assert "reference  works" in out


def test_a_backend_that_cannot_work_gives_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        name = "broken"

        def unusable(self, device: torch.device) -> str:
            return f"no compiler for {device}"

    working = 2 if compiled.module is not None else 3  # Broken, triton, native, reference
    monkeypatch.setattr(backends, "BACKENDS", (Broken(), *backends.BACKENDS))
    monkeypatch.setattr(doctor, "BACKENDS", backends.BACKENDS)
    assert "broken     no: no compiler for cpu" in doctor.report()
    assert backends.select("auto", torch.device("cpu")) is backends.BACKENDS[working]
    with pytest.raises(RuntimeError, match=r'on cpu: "broken": no compiler for cpu.*doctor'):
        backends.select("broken", torch.device("cpu"))


def test_importing_the_library_imports_neither_the_laboratory_nor_its_packages() -> None:
    code = (
        "import sys, ragrad_ext; "
        "print([m for m in ('torchvision', 'matplotlib', 'ragrad_ext.detection', 'triton') "
        "if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_an_unknown_command_is_an_error() -> None:
    with pytest.raises(SystemExit) as stop:
        main(["diagnose"])
    assert stop.value.code == 2
