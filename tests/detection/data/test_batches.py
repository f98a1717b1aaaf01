"""Order and augmentation: functions of seed, epoch and image alone."""

from __future__ import annotations

import pytest
import torch

from ragrad_ext.detection.data.batches import epoch_batches, load_batches
from ragrad_ext.detection.data.datasets import Scenes
from ragrad_ext.detection.data.transforms import PairedAugment

from ...lib.runs import same


@pytest.mark.parametrize(("count", "sizes"), [(10, [4, 4]), (8, [4, 4]), (3, [3])])
def test_batches_hold_each_image_once_and_no_remainder(count: int, sizes: list[int]) -> None:
    batches = epoch_batches(count, 4, seed=0, epoch=0)
    used = [i for batch in batches for i in batch]
    assert [len(b) for b in batches] == sizes
    assert len(set(used)) == len(used) == sum(sizes)
    assert set(used) <= set(range(count))


def test_order_follows_seed_and_epoch() -> None:
    first = epoch_batches(32, 4, seed=0, epoch=0)
    assert first == epoch_batches(32, 4, seed=0, epoch=0)
    assert first != epoch_batches(32, 4, seed=0, epoch=1)
    assert first != epoch_batches(32, 4, seed=1, epoch=0)


def test_augmentation_does_not_depend_on_what_was_read_before() -> None:
    scenes, augment = Scenes(6, size=(96, 96)), PairedAugment()
    batches = epoch_batches(6, 2, seed=3, epoch=1)
    every = list(load_batches(scenes, batches, augment=augment, seed=3, epoch=1))
    last = list(load_batches(scenes, batches[2:], augment=augment, seed=3, epoch=1))
    assert same(every[2:], last)
    other = list(load_batches(scenes, batches[2:], augment=augment, seed=3, epoch=2))
    assert not torch.equal(last[0][0][0], other[0][0][0])


def test_workers_change_nothing() -> None:
    scenes, batches = Scenes(4, size=(96, 96)), [[0, 1], [2, 3]]
    here, elsewhere = (
        list(load_batches(scenes, batches, augment=PairedAugment(), seed=1, epoch=0, workers=w))
        for w in (0, 1)
    )
    assert same(here, elsewhere)
