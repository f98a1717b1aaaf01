"""Estimators where several processes train replicas of one model (DistributedDataParallel).

When ``.grad`` is corrected it is already the mean over the processes, so all of them correct alike.
What an estimator measures by itself belongs to its own process's part of the batch. It must be
averaged too, or the replicas drift apart.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch import distributed as dist


def several() -> bool:
    """Whether this is one process of several."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank(group: dist.ProcessGroup | None) -> int:
    """The number of this process within ``group``; 0 without a group."""
    return 0 if group is None else dist.get_rank(group)


def mean_over(group: dist.ProcessGroup, tensors: Sequence[Tensor]) -> list[Tensor]:
    """The mean of each tensor over the processes of ``group``, by one all-reduce."""
    flat = torch.cat([t.flatten() for t in tensors])
    dist.all_reduce(flat, group=group)
    flat /= dist.get_world_size(group)
    parts = flat.split([t.numel() for t in tensors])
    return [part.view_as(t) for part, t in zip(parts, tensors, strict=True)]
