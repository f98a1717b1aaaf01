"""The compiled module, or why there is none. A pure Python install works without it."""

from __future__ import annotations

import importlib
from typing import Any

module: Any = None
missing: str | None = None  # why module is None

try:
    module = importlib.import_module("ragrad_ext._native")
except ImportError as error:
    missing = (
        "the compiled module was not built; RAGRAD_NATIVE=require pip install -v . says why"
        if isinstance(error, ModuleNotFoundError)
        else f"the compiled module does not load: {error}"
    )
