"""What a run is made of: settings, seeds, batches, learning rate, checkpoints."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ragrad_ext.detection.data.batches import epoch_batches, load_batches
from ragrad_ext.detection.data.datasets import Scenes
from ragrad_ext.detection.data.transforms import PairedAugment
from ragrad_ext.detection.seeds import AUGMENT, ORDER, derive_seed, own_randomness, seed_
from ragrad_ext.detection.settings import Settings
from ragrad_ext.detection.training.checkpoint import load_checkpoint, load_model_, save_checkpoint
from ragrad_ext.detection.training.meter import Meter, write_json
from ragrad_ext.detection.training.model import (
    learning_rate,
    make_model,
    make_optimizer,
    pick_device,
)

TINY = Settings(epochs=2, scenes=8, width=96, height=96, evaluate_every=1, device="cpu")


def same(a: Any, b: Any) -> bool:
    """Bit for bit, through containers; seconds excepted."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a if k != "seconds")
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, Tensor):
        return a.dtype == b.dtype and torch.equal(a.nan_to_num(7.5), b.nan_to_num(7.5))
    return a == b or (isinstance(a, float) and math.isnan(a) and math.isnan(b))


# ---- settings --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "pcgrad"}, r"method must be one of none, ragrad, got 'pcgrad'"),
        ({"detector": "yolo"}, r"detector must be one of fcos"),
        ({"epochs": 0}, r"epochs must be a whole number, 1 or more, got 0"),
        ({"batch_size": 2.0}, r"batch_size must be a whole number"),
        ({"seed": -1}, r"seed must be a whole number, 0 or more, got -1"),
        ({"lr": 0.0}, r"lr must be a finite number, above 0"),
        ({"lr": math.nan}, r"lr must be a finite number"),
        ({"clip": -1.0}, r"clip must be a finite number, 0 or more"),
        ({"alpha": 1.0}, r"alpha must lie in \[0, 1\)"),
        ({"detector": "fasterrcnn", "effectiveness": "hutchinson"}, "RoIAlign has no second"),
    ],
)
def test_settings_refuse_what_cannot_be(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Settings(**change)


def test_settings_name_their_differences_and_forgive_the_place() -> None:
    other = TINY.change(lr=0.5, device="cuda", workers=3)
    assert TINY.differences(other) == ["lr: 0.5 there, 0.002 here"]


def test_settings_survive_json_and_refuse_another_version(tmp_path: Path) -> None:
    write_json(tmp_path / "settings.json", TINY.to_dict())
    assert Settings.load(tmp_path / "settings.json") == TINY
    assert Settings.from_dict({"lr": 0.5}) == Settings(lr=0.5)
    with pytest.raises(ValueError, match="another version: colour is unknown here"):
        Settings.from_dict({**TINY.to_dict(), "colour": 1})


# ---- what follows from the seed --------------------------------------------------------------


def test_seeds_depend_on_every_part() -> None:
    parts = [(s, p, e, i) for s in (0, 1) for p in (ORDER, AUGMENT) for e in (0, 1) for i in (0, 1)]
    seeds = {derive_seed(*part) for part in parts}
    assert len(seeds) == 16
    assert all(0 <= s < 2**63 for s in seeds)


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


def test_both_methods_start_from_the_same_weights() -> None:
    none, ragrad = (make_model(TINY.change(method=m), 3).state_dict() for m in ("none", "ragrad"))
    assert same(dict(none), dict(ragrad))
    other = make_model(TINY.change(seed=1), 3).state_dict()
    assert not same(dict(none), dict(other))


def test_own_randomness_leaves_the_global_state_alone() -> None:
    before = torch.get_rng_state()
    with own_randomness(torch.device("cpu")):
        seed_(5, torch.device("cpu"))
        torch.rand(3)
    assert torch.equal(torch.get_rng_state(), before)


def test_learning_rate_by_hand() -> None:
    s = Settings(lr=1.0, warmup=1.0, epochs=3)
    rates = [learning_rate(s, step, per_epoch=3) for step in range(9)]
    # warm-up 1/4, 2/4, 3/4; then half a cosine over six steps
    cosine = [0.5 * (1 + math.cos(math.pi * k / 6)) for k in range(6)]
    assert rates == pytest.approx([0.25, 0.5, 0.75, *cosine])


def test_only_weights_decay() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    decayed, rest = make_optimizer(model, TINY.change(weight_decay=0.1)).param_groups
    assert [tuple(p.shape) for p in decayed["params"]] == [(4, 3, 3, 3)]
    assert [tuple(p.shape) for p in rest["params"]] == [(4,), (4,), (4,)]
    assert (decayed["weight_decay"], rest["weight_decay"]) == (0.1, 0.0)


def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match=r"device 'xyz' cannot be used: .*; try --device cpu"):
        pick_device("xyz")


# ---- checkpoints -----------------------------------------------------------------------------


def test_a_model_that_does_not_fit_is_left_alone(tmp_path: Path) -> None:
    model, other = nn.Linear(2, 3), nn.Linear(2, 4)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"weight is \(4, 2\) there, \(3, 2\) here"):
        load_model_(model, other.state_dict(), tmp_path)
    strange = {"weight": torch.zeros(3, 2), "extra": torch.zeros(1)}
    with pytest.raises(ValueError, match=r"lacks bias; has extra, which the model lacks"):
        load_model_(model, strange, tmp_path)
    assert same(dict(model.state_dict()), before)


def test_a_checkpoint_is_whole_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        load_checkpoint(path)
    save_checkpoint(path, {"epoch": 3, "weights": torch.arange(3)})
    assert load_checkpoint(path)["epoch"] == 3
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="not a readable checkpoint"):
        load_checkpoint(path)
    torch.save({"model": {}}, path)
    with pytest.raises(ValueError, match="expected format 1, found None"):
        load_checkpoint(path)


def test_a_failed_write_keeps_the_former_file(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, {"epoch": 1})
    with pytest.raises(Exception, match="pickle"):
        save_checkpoint(path, {"epoch": 2, "unfit": lambda: None})
    assert load_checkpoint(path)["epoch"] == 1


def test_the_meter_averages(monkeypatch: pytest.MonkeyPatch) -> None:
    meter = Meter(loss=6.0, steps=3, seconds=1.5, conflicts=0.5, reads=2)
    row = {"epoch": 1, "loss": 2.0, "lr": 0.1, "seconds": 1.5, "conflicts": 0.25}
    assert meter.row(1, 0.1) == row
    assert "conflicts" not in Meter(loss=6.0, steps=3).row(1, 0.1)
