"""The doctor says what works, and why the rest does not."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

import ragrad_ext
from ragrad_ext import backends, compiled, doctor
from ragrad_ext.__main__ import main
from ragrad_ext.backends import registry


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
    monkeypatch.setattr(registry, "BACKENDS", (Broken(), *registry.BACKENDS))
    monkeypatch.setattr(doctor, "BACKENDS", registry.BACKENDS)
    assert "broken     no: no compiler for cpu" in doctor.report()
    assert backends.select("auto", torch.device("cpu")) is registry.BACKENDS[working]
    with pytest.raises(RuntimeError, match=r'on cpu: "broken": no compiler for cpu.*doctor'):
        backends.select("broken", torch.device("cpu"))


WITHOUT_COMPILED_MODULE = """
import sys, warnings
sys.modules["ragrad_ext._native"] = None  # as if it was not there
import torch
from ragrad_ext import Reliability, correct_

given = Reliability([torch.rand(3)], [torch.rand(3)])

def step(backend):
    return correct_([torch.randn(3, 4)], [torch.randn(3, 4)], given, backend=backend).mask

compiled = torch.compile(step, fullgraph=True, backend="eager")
with warnings.catch_warnings(record=True) as found:
    warnings.simplefilter("always")
    for call, backend in {calls}:
        call(backend)
        print([str(w.message) for w in found if "reference" in str(w.message)])
"""


@pytest.mark.parametrize("calls", ["(step, 'auto')", "(compiled, 'auto')"])
@pytest.mark.slow
def test_without_the_compiled_module_auto_warns_once(calls: str) -> None:
    code = WITHOUT_COMPILED_MODULE.replace("{calls}", f"[(step, 'reference'), {calls}, {calls}]")
    said = subprocess.check_output([sys.executable, "-c", code], text=True).splitlines()
    assert said[0] == "[]"
    assert "the slow reference serves cpu" in said[1]
    assert "RAGRAD_NATIVE=require pip install" in said[1]
    assert said[2] == said[1]


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
