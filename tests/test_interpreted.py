"""Tests that run in the process with TRITON_INTERPRET=1 are reported as what they were there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from .lib import interpreted

TESTS = """
import os, pytest
pytestmark = pytest.mark.interpreted

@pytest.fixture
def broken():
    yield
    raise ValueError("not torn down")

def test_there(): assert os.environ["TRITON_INTERPRET"] == "1"
def test_wrong(): assert "one" == "two"
def test_left_out(): pytest.skip("for a reason")
def test_fixture(broken): pass
def test_crash(): os._exit(7)
def test_never(): pass
"""


def test_every_outcome_arrives(tmp_path: Path) -> None:
    (tmp_path / "tests" / "lib").mkdir(parents=True)
    for package in ("tests", "tests/lib"):
        (tmp_path / package / "__init__.py").touch()
    shutil.copy(interpreted.__file__, tmp_path / "tests" / "lib")
    hook = "from .lib.interpreted import pytest_collection_finish\n"
    (tmp_path / "tests" / "conftest.py").write_text(hook)
    (tmp_path / "tests" / "test_it.py").write_text(TESTS)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n  interpreted\n")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "pytest", "-v", "-rs", "-p", "no:cacheprovider"]
    ran = subprocess.run(command, cwd=tmp_path, env=environment, text=True, capture_output=True)
    for name, outcome in {
        "there": "PASSED",
        "wrong": "FAILED",
        "left_out": "SKIPPED",
        "fixture": "FAILED",
        "crash": "FAILED",
        "never": "FAILED",
    }.items():
        assert f"test_it.py::test_{name} {outcome}" in ran.stdout
    for why in ("'one' == 'two'", "for a reason", "not torn down", "with exit status 7"):
        assert why in ran.stdout
    assert "4 failed, 1 passed, 1 skipped" in ran.stdout
    assert ran.returncode == 1
