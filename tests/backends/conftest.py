"""Shared fixtures of the backends' tests."""

from __future__ import annotations

import ctypes
import shutil

import pytest

from ..lib.cuda_on_host.backend import build


@pytest.fixture(scope="session")
def cuda_on_host(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The CUDA kernels, compiled for the host."""
    if shutil.which("g++") is None:
        pytest.skip("no g++ on PATH: the CUDA kernels were not compiled for the host")
    return build(tmp_path_factory.mktemp("cuda"))
