"""What the Triton backend refuses, and its table of launch parameters: no kernel runs."""

from __future__ import annotations

import os
import subprocess
import sys
import types
from itertools import product

import pytest
import torch

from ragrad_ext import Reliability, correct_
from ragrad_ext.backends import registry
from ragrad_ext.backends.triton import plan
from ragrad_ext.backends.triton.backend import Triton
from ragrad_ext.backends.triton.tuning import TABLE, Tuning, tuning

from ...lib.triton_cases import layers

pytest.importorskip("triton")
LATE = "it needs a CUDA device, or TRITON_INTERPRET=1 from the start of the process"


class TestRefusals:
    @pytest.mark.parametrize(
        ("before", "after", "said"),
        [
            (None, None, "it needs a CUDA device"),
            (None, "1", LATE),
            ("1", "0", LATE),
            ("1", "1", None),
        ],
    )
    @pytest.mark.slow
    def test_on_a_cpu_it_needs_the_interpreter_from_the_start(
        self, before: str | None, after: str | None, said: str | None
    ) -> None:
        """And ``"auto"`` does not choose it even then."""
        code = (
            "import os, torch, triton.language; from ragrad_ext import backends as b\n"
            f"if {after!r}: os.environ['TRITON_INTERPRET'] = {after!r}\n"
            "cpu = torch.device('cpu')\n"
            "print(b.BACKENDS[0].unusable(cpu)); print(b.select('auto', cpu).name)"
        )
        environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
        if before:
            environment["TRITON_INTERPRET"] = before
        found = subprocess.check_output([sys.executable, "-c", code], env=environment, text=True)
        why, chosen = found.splitlines()
        assert why == str(said)
        assert chosen in ("native", "reference")

    def test_a_named_request_gets_the_reason(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(registry, "BACKENDS", (Triton(), *registry.BACKENDS[1:]))
        monkeypatch.delenv("TRITON_INTERPRET", raising=False)
        rgb, ir = layers((3, 5))
        given = Reliability([torch.rand(3)], [torch.rand(3)])
        with pytest.raises(RuntimeError, match='no usable backend on cpu: "triton": it needs a CU'):
            correct_(rgb, ir, given, backend="triton")

    @pytest.mark.parametrize(
        ("available", "capability", "triton", "why"),
        [
            (False, (9, 0), "3.6.0", "no CUDA device or driver"),
            (True, (7, 5), "3.6.0", "it needs compute capability 8.0, this device has 7.5"),
            (True, (9, 0), None, "triton does not import"),
            (True, (9, 0), "3.5.1", "it needs triton 3.6, found 3.5.1"),
            (True, (9, 0), "3.6.0+git1", None),
            (True, (12, 0), "4.0.0", None),
        ],
    )
    def test_what_is_missing_is_said(
        self,
        monkeypatch: pytest.MonkeyPatch,
        available: bool,
        capability: tuple[int, int],
        triton: str | None,
        why: str | None,
    ) -> None:
        monkeypatch.setattr(torch.version, "cuda", "13.0")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        module = None
        if triton is not None:
            module = types.ModuleType("triton")
            module.__version__ = triton  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "triton", module)
        said = Triton().unusable(torch.device("cuda"))
        assert (said is None) if why is None else why in str(said)
        if available:
            assert "there are 1" in str(Triton().unusable(torch.device("cuda", 1)))
        monkeypatch.setattr(torch.version, "cuda", None)
        assert Triton().unusable(torch.device("cuda")) == "it needs a CUDA device"


class TestTuning:
    def test_an_architecture_that_is_not_listed_has_the_defaults(self) -> None:
        assert tuning((99, 0)) == Tuning()

    @pytest.mark.parametrize("one", [Tuning(), *TABLE.values()])
    def test_every_entry_can_be_used(self, one: Tuning) -> None:
        """Tiles of whole vectors, of every height and type, for a correction and an observation."""
        for item_bytes, height in product((2, 4), plan.HEIGHTS):
            width = plan.tile_width(height, item_bytes, one.limits)
            assert width & (width - 1) == 0
            assert width // 2 >= 16 // item_bytes
