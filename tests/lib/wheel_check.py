"""One wheel, several versions of torch: `python -m tests.lib.wheel_check [VERSION ...]`.

Builds the wheel as a release would, without torch in the build's environment. For each version
then: an empty environment, the wheel and that torch installed from their packages alone, and the
native backend compared with the reference. Minutes, and some GB for a torch with CUDA.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
VERSIONS = ("2.10.0", "2.13.0")  # the oldest that is supported, and one between it and the newest

SMOKE = """
import torch
from ragrad_ext import Reliability, _native, correct_

assert "site-packages" in _native.__file__, _native.__file__
for dtype in (torch.float32, torch.bfloat16, torch.float16):
    shapes = [(8, 3, 3, 3), (16, 8), (5,)]
    draw = torch.Generator().manual_seed(0)
    rgb, ir = ([torch.randn(s, generator=draw).to(dtype) for s in shapes] for _ in range(2))
    given = Reliability(*([torch.rand(s[0], generator=draw) for s in shapes] for _ in range(2)))
    result = {}
    for backend in ("native", "reference"):
        a, b = [g.clone() for g in rgb], [g.clone() for g in ir]
        found = correct_(a, b, given, backend=backend)
        result[backend] = [*a, *b, found.cosine, found.gap, found.mask, found.strength]
    assert int(found.count()) > 0
    torch.testing.assert_close(result["native"], result["reference"])
print(f"torch {torch.__version__}: native agrees with the reference")
"""


def main(versions: list[str]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run(sys.executable, "-m", "build", "--outdir", folder / "dist", ROOT, cwd=folder)
        (wheel,) = (folder / "dist").glob("*.whl")
        print(f"\n{wheel.name}, {wheel.stat().st_size / 1e6:.1f} MB", flush=True)
        for version in versions:
            start = time.monotonic()
            with tempfile.TemporaryDirectory(dir=folder) as environment:
                python = Path(environment) / "bin" / "python"
                run(sys.executable, "-m", "venv", environment, cwd=folder)
                run(
                    python,
                    "-m",
                    "pip",
                    "install",
                    "--quiet",
                    f"torch=={version}",
                    wheel,
                    cwd=folder,
                )
                run(python, "-c", SMOKE, cwd=folder)
            print(f"({time.monotonic() - start:.0f} s, installation included)", flush=True)


def run(*command: str | Path, cwd: Path) -> None:
    subprocess.run(command, cwd=cwd, check=True, env=os.environ | {"RAGRAD_NATIVE": "require"})


if __name__ == "__main__":
    main(sys.argv[1:] or list(VERSIONS))
