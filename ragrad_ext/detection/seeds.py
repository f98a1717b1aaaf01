"""Every random stream of a run follows from its seed and its place: nothing needs saving."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

# What a stream is for: streams of different purpose never share a seed.
INIT, ORDER, AUGMENT, STEP, METHOD = range(5)


def derive_seed(seed: int, purpose: int, epoch: int = 0, item: int = 0) -> int:
    """A seed in [0, 2**63) that depends on each of the four numbers."""
    entropy = np.random.SeedSequence((seed, purpose, epoch, item))
    return int(entropy.generate_state(1, np.uint64)[0] >> np.uint64(1))


@contextmanager
def own_randomness(device: torch.device) -> Iterator[None]:
    """Restores torch's global random state of the CPU and of `device` on leaving.

    torchvision draws from it (initial weights, sampled proposals) and takes no generator.
    """
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield


def seed_(seed: int, device: torch.device) -> None:
    """Seeds torch's global generators of the CPU and of `device`; use inside `own_randomness`."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
