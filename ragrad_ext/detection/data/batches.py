"""Order and augmentation that depend on (seed, epoch) alone, so a resumed run sees the same."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..seeds import AUGMENT, ORDER, derive_seed
from .datasets import PairedImages, Sample, collate

Augment = Callable[[Tensor, dict[str, Any], torch.Generator], Sample]


def epoch_batches(count: int, batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """The epoch's batches of indices below `count`, shuffled.

    The last, short batch is left out (BatchNorm over one image is noise), unless it is the only
    one; which images it would hold changes from epoch to epoch.
    """
    generator = torch.Generator().manual_seed(derive_seed(seed, ORDER, epoch))
    order = torch.randperm(count, generator=generator).tolist()
    whole = count - count % batch_size or count
    return [order[i : i + batch_size] for i in range(0, whole, batch_size)]


class Augmented(Dataset[Sample]):
    """`dataset` with an augmentation that depends on (seed, epoch, image) only."""

    def __init__(
        self, dataset: PairedImages, augment: Augment | None, seed: int, epoch: int
    ) -> None:
        self.dataset, self.augment = dataset, augment
        self.seed, self.epoch = seed, epoch

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample:
        image, target = self.dataset[index]
        if self.augment is None:
            return image, target
        dice = derive_seed(self.seed, AUGMENT, self.epoch, index)
        return self.augment(image, target, torch.Generator().manual_seed(dice))


def load_batches(
    dataset: PairedImages,
    batches: list[list[int]],
    *,
    augment: Augment | None,
    seed: int,
    epoch: int,
    workers: int = 0,
    pin_memory: bool = False,
) -> DataLoader:
    """The batches as (list of images, list of targets), read by `workers` processes."""
    return DataLoader(
        Augmented(dataset, augment, seed, epoch),
        batch_sampler=batches,
        collate_fn=collate,
        num_workers=workers,
        pin_memory=pin_memory,
        worker_init_fn=_ignore_interrupts,
        generator=torch.Generator(),  # it draws a base seed: not from the global one
    )


def _ignore_interrupts(worker: int) -> None:
    """Ctrl-C reaches every process of a terminal; the main process alone decides what to do."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
