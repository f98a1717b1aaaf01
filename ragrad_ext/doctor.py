"""What works here, and why the rest does not."""

from __future__ import annotations

import importlib.metadata
import platform
import sys

import torch

from . import compiled
from .backends import BACKENDS
from .version import __version__


def report() -> str:
    """Versions, devices and backends of this installation, as lines to print."""
    lines = [
        f"ragrad_ext   {__version__}",
        f"Python       {platform.python_version()} ({sys.platform}, {platform.machine()})",
        f"torch        {torch.__version__}, {torch.get_num_threads()} threads",
        f"CUDA         {_cuda()}",
        f"compiled     {_compiled()}",
    ]
    lines += [f"{name:<13}{_version(name)}" for name in ("triton", "torchvision", "pycocotools")]
    devices = [torch.device("cpu")]
    devices += [torch.device("cuda", i) for i in range(torch.cuda.device_count())]
    for device in devices:
        name = "" if device.type == "cpu" else f" ({torch.cuda.get_device_name(device)})"
        lines.append(f"\nbackends on {device}{name}")
        lines += [
            f"  {b.name:<11}{'works' if (why := b.unusable(device)) is None else 'no: ' + why}"
            for b in BACKENDS
        ]
    return "\n".join(lines)


def _cuda() -> str:
    if torch.version.cuda is None:
        return "none: this torch was built without it"
    if not torch.cuda.is_available():
        return f"{torch.version.cuda} in this torch, but no usable device or driver"
    return f"{torch.version.cuda}, {torch.cuda.device_count()} device(s)"


def _compiled() -> str:
    module = compiled.module
    if module is None:
        return f"no: {compiled.missing}"
    why = module.cuda_unusable(0)
    return f"for {', '.join(module.instruction_sets())}; CUDA kernels: {why or 'work'}"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
