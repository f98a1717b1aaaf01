"""Paired gradients for parity: ordinary, awkward and random ones."""

from __future__ import annotations

import torch
from torch import Tensor

Pairs = tuple[list[Tensor], list[Tensor]]


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def twins(*shape: int, seed: int = 0, scale: float = 1.0, agreement: float = -0.3) -> Pairs:
    """One pair whose rows have cosines around ``agreement``."""
    g = rng(seed)
    a = torch.randn(shape, generator=g)
    b = agreement * a + (1 - agreement**2) ** 0.5 * torch.randn(shape, generator=g)
    return [a * scale], [b * scale]


def reliabilities(channels: int, seed: int = 0) -> Pairs:
    g = rng(seed + 1)
    return [torch.rand(channels, generator=g)], [torch.rand(channels, generator=g)]


def in_larger_storage(x: Tensor) -> Tensor:
    """Equal values, as a slice of a larger tensor: odd offset, gaps between rows."""
    wide = torch.full((x.shape[0], x[0].numel() + 5), 7.0, dtype=x.dtype)
    view = wide[:, 3 : 3 + x[0].numel()]
    view.copy_(x.reshape(x.shape[0], -1))
    return view


def transposed(x: Tensor) -> Tensor:
    """Equal values with the channel axis innermost in memory, as a transposed convolution's."""
    return x.movedim(0, 1).contiguous().movedim(1, 0)


def cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Another dtype, the same strides, gaps between rows included."""
    room = sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True)) + 1
    storage = torch.full((room,), 7.0, dtype=dtype, device=x.device)
    return storage.as_strided(x.shape, x.stride()).copy_(x)


AWKWARD: dict[str, Pairs] = {
    "plain": twins(16, 8, 3, 3),
    "one channel": twins(1, 8, 3, 3),
    "one element": twins(16, 1),
    "one dimension": twins(16),
    "zero row": ([torch.tensor([[0.0, 0.0], [1.0, 0.0]])], [torch.tensor([[1.0, 2.0], [-1.0, 1]])]),
    "no negatives": (twins(16, 9)[0], [x.clone() for x in twins(16, 9)[0]]),
    "all opposite": (twins(16, 9)[0], [-x for x in twins(16, 9)[0]]),
    "scale 1e-10": twins(16, 40, scale=1e-10),
    "scale 1e+10": twins(16, 40, scale=1e10),
    "squares overflow float32": twins(16, 40, scale=1e30),
    "slices": tuple([in_larger_storage(x[0])] for x in twins(16, 8, 3, 3)),  # type: ignore[dict-item]
    "channels_last": tuple(  # type: ignore[dict-item]
        [x[0].contiguous(memory_format=torch.channels_last)] for x in twins(16, 8, 3, 3)
    ),
    "channels innermost": tuple([transposed(x[0])] for x in twins(16, 8, 3, 3)),  # type: ignore[dict-item]
    "unlike strides": (twins(16, 8, 3)[0], [transposed(twins(16, 8, 3)[1][0])]),
    "several layers": tuple(  # type: ignore[dict-item]
        [twins(c, n, seed=c)[m][0] for c, n in ((4, 9), (32, 1), (7, 250))] for m in (0, 1)
    ),
}
