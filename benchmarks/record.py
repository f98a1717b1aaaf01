"""A result file: what was measured, on what, by which command."""

from __future__ import annotations

import json
import os
import platform
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

import ragrad_ext


def write(path: Path, module: str, rows: list[dict[str, Any]]) -> None:
    """Write rows with command, versions and machine to ``path``, whole or not at all."""
    record = {
        "command": " ".join(["python -m", module, *sys.argv[1:]]),
        "versions": {
            "ragrad_ext": ragrad_ext.__version__,
            "torch": torch.__version__,
            **({"triton": import_module("triton").__version__} if find_spec("triton") else {}),
            "python": platform.python_version(),
        },
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} used",
        "rows": rows,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(record, indent=1) + "\n")
    os.replace(part, path)
