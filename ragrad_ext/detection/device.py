"""Where a run computes."""

from __future__ import annotations

import torch


def pick_device(name: str) -> torch.device:
    """The device of that name; "auto" is the GPU if there is one, else the CPU.

    Raises ValueError, with the reason, for a device that cannot be used.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {name!r} cannot be used: {reason}; try --device cpu") from error
    return device
