"""Shared fixtures."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from .lib.interpreted import pytest_collection_finish  # noqa: F401

DATA = Path(os.environ.get("RAGRAD_DATA", Path(__file__).parents[2] / "shared" / "data"))


@pytest.fixture
def real_data() -> Path:
    """The folder of real visible/infrared pairs; its tests say so and are left out without it."""
    if not DATA.is_dir():
        pytest.skip(f"no real pairs at {DATA}; set RAGRAD_DATA to their folder")
    return DATA


# Small tensors gain nothing from threads, and lose much where other work shares the cores.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
