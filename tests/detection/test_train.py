"""Settings, the order of things, checkpoints, and a run that stops and goes on bit for bit."""

from __future__ import annotations

import csv
import json
import math
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ragrad_ext.detection import train as train_module
from ragrad_ext.detection.batches import epoch_batches, load_batches
from ragrad_ext.detection.checkpoint import load_checkpoint, load_model_, save_checkpoint
from ragrad_ext.detection.data import Scenes
from ragrad_ext.detection.parts import (
    learning_rate,
    load_trained,
    make_model,
    make_optimizer,
    open_split,
    pick_device,
)
from ragrad_ext.detection.run_log import Meter, read_run, write_json
from ragrad_ext.detection.seeds import AUGMENT, ORDER, derive_seed, own_randomness, seed_
from ragrad_ext.detection.settings import Settings
from ragrad_ext.detection.stopping import Interrupted, stop_signal
from ragrad_ext.detection.train import train
from ragrad_ext.detection.transforms import PairedAugment

TINY = Settings(epochs=2, scenes=8, width=96, height=96, evaluate_every=1, device="cpu")


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Models this small gain nothing from a second one, and lose much where cores are shared."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def stop_at(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """Presses Ctrl-C during the step of that number, counted from 1 over the whole call."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    step = train_module._Trainer._step

    def arrange(number: int) -> None:
        left = iter(range(number - 1, -1, -1))

        def pressed(self: Any, *args: Any) -> Tensor:
            loss = step(self, *args)
            if next(left, None) == 0:
                signal.raise_signal(signal.SIGINT)
            return loss

        monkeypatch.setattr(train_module._Trainer, "_step", pressed)

    yield arrange
    signal.signal(signal.SIGINT, before)


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


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
    ],
)
def test_settings_refuse_what_cannot_be(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Settings(**change)


def test_settings_name_their_differences_and_forgive_the_place() -> None:
    other = TINY.change(lr=0.5, device="cuda", workers=3)
    assert TINY.differences(other) == ["lr: 0.5 there, 0.001 here"]


def test_settings_survive_json_and_refuse_another_version(tmp_path: Path) -> None:
    write_json(tmp_path / "settings.json", TINY.to_dict())
    assert Settings.load(tmp_path / "settings.json") == TINY
    with pytest.raises(ValueError, match=r"unknown \['colour'\], lacking \[\]"):
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


# ---- stopping --------------------------------------------------------------------------------


def test_the_first_interrupt_asks_and_the_second_stops() -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with stop_signal() as stop:
            signal.raise_signal(signal.SIGINT)
            assert stop.is_set()
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


# ---- whole runs, tiny ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished RaGrad run of two epochs."""
    folder = tmp_path_factory.mktemp("runs") / "straight"
    before = torch.get_rng_state()
    train(TINY, folder, progress=False)
    assert torch.equal(torch.get_rng_state(), before), "training touched the global random state"
    return folder


def test_a_run_leaves_its_files(straight: Path) -> None:
    assert set(contents(straight)) == set(train_module.FILES)
    rows = list(csv.DictReader((straight / "log.csv").open()))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert all(0 <= float(row["conflicts"]) <= 1 and float(row["loss"]) > 0 for row in rows)
    assert all(0 <= float(row["AP50"]) <= 1 for row in rows)
    run = read_run(straight)
    assert run is not None
    assert (run.method, run.seed, len(run.epochs)) == ("ragrad", 0, 2)
    assert {"overall", "day", "night"} <= set(run.ap)
    assert run.ap["overall"]["AP"] == run.epochs[-1]["AP"]
    layers = run.layers
    assert layers is not None
    assert layers.conflicts.shape == layers.rgb.shape == (2, len(layers.names))
    assert np.all((layers.rgb > 0) & (layers.rgb < 1) & (layers.ir > 0) & (layers.ir < 1))
    assert "stage1.0.weight" in layers.names[0]


@pytest.mark.parametrize("steps", [1, 2, 3], ids=["mid-epoch", "end of epoch", "second epoch"])
def test_resumed_is_straight_bit_for_bit(
    straight: Path, tmp_path: Path, stop_at: Callable[[int], None], steps: int
) -> None:
    stop_at(steps)
    with pytest.raises(Interrupted, match=rf"stopped in epoch {1 + steps // 3} of 2 .*--resume"):
        train(TINY, tmp_path, progress=False)
    (tmp_path / "log.csv").open("a").write("99,a row ahead of the checkpoint\n")
    run = train(TINY, tmp_path, resume=True, progress=False)
    there, here = (load_checkpoint(f / "checkpoint.pt") for f in (straight, tmp_path))
    assert same(here, there)
    assert len((tmp_path / "log.csv").read_text().splitlines()) == 3
    other = read_run(straight)
    assert other is not None
    assert same(run.ap, other.ap)
    assert run.layers is not None
    assert other.layers is not None
    np.testing.assert_array_equal(run.layers.rgb, other.layers.rgb)


def test_an_interrupt_outlives_a_second_resume(
    straight: Path, tmp_path: Path, stop_at: Callable[[int], None]
) -> None:
    for _ in range(2):
        stop_at(1)
        with pytest.raises(Interrupted):
            train(TINY, tmp_path, resume=True, progress=False)
    train(TINY, tmp_path, resume=True, progress=False)
    there, here = (load_checkpoint(f / "checkpoint.pt") for f in (straight, tmp_path))
    assert same(here, there)


def test_a_finished_run_is_read_not_trained(
    straight: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_module, "_Trainer", None)
    before = contents(straight)
    run = train(TINY, straight, resume=True)
    assert run.ap["overall"]["AP"] == json.loads(before["metrics.json"])["ap"]["overall"]["AP"]
    assert contents(straight) == before


def test_a_run_is_never_overwritten_by_accident(straight: Path) -> None:
    before = contents(straight)
    with pytest.raises(FileExistsError, match="already holds a run; use --resume"):
        train(TINY, straight)
    with pytest.raises(ValueError, match=r"other settings \(lr: 0.001 there, 0.01 here\)"):
        train(TINY.change(lr=0.01), straight, resume=True)
    with pytest.raises(ValueError, match="method: 'ragrad' there, 'none' here"):
        train(TINY.change(method="none"), straight, resume=True)
    assert contents(straight) == before


def test_a_checkpoint_of_another_model_is_refused(straight: Path, tmp_path: Path) -> None:
    state = load_checkpoint(straight / "checkpoint.pt")
    write_json(tmp_path / "settings.json", TINY.to_dict())
    unfit = {**state, "model": {k: v for k, v in state["model"].items() if "head" not in k}}
    for changed, message in (
        (unfit, r"holds another model: it lacks head\."),
        ({**state, "classes": ["ship"]}, "trained for the classes ship, the data has person"),
        ({**state, "settings": {**state["settings"], "seed": 4}}, "seed: 4 there, 0 here"),
    ):
        del changed["format"]
        save_checkpoint(tmp_path / "checkpoint.pt", changed)
        state["format"] = 1
        before = contents(tmp_path)
        with pytest.raises(ValueError, match=message):
            train(TINY, tmp_path, resume=True, progress=False)
        assert contents(tmp_path) == before


def test_overwrite_starts_anew(tmp_path: Path) -> None:
    short = TINY.change(epochs=1, method="none")
    write_json(tmp_path / "settings.json", TINY.to_dict())
    for name in ("metrics.json", "layers.npz", "mine.txt"):
        (tmp_path / name).write_text("old")
    run = train(short, tmp_path, overwrite=True, progress=False)
    assert run.layers is None
    assert "conflicts" not in run.epochs[0]
    assert not (tmp_path / "layers.npz").exists()
    assert (tmp_path / "mine.txt").read_text() == "old"
    assert read_run(tmp_path) is not None


def test_a_loss_that_is_not_finite_stops_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, calls = train_module._Trainer._step, iter(range(10))

    def burst(self: Any, *args: Any) -> Tensor:
        loss = step(self, *args)
        return loss * math.inf if next(calls) == 3 else loss

    monkeypatch.setattr(train_module._Trainer, "_step", burst)
    with pytest.raises(
        FloatingPointError, match=r"the loss is inf in epoch 2, step 2; .*lower --lr"
    ):
        train(TINY, tmp_path, progress=False)
    assert load_checkpoint(tmp_path / "checkpoint.pt")["epoch"] == 1
    assert read_run(tmp_path) is None


def test_a_trained_model_comes_back(straight: Path) -> None:
    val = open_split(TINY, "val")
    model, settings = load_trained(straight / "checkpoint.pt", val, "cpu")
    saved = load_checkpoint(straight / "checkpoint.pt")["model"]
    assert settings == TINY
    assert same(dict(model.state_dict()), dict(saved))


@pytest.mark.parametrize("effectiveness", ["hutchinson", "finite-difference", "fisher"])
def test_every_estimator_trains(tmp_path: Path, effectiveness: Any) -> None:
    run = train(
        TINY.change(effectiveness=effectiveness, epochs=1, scenes=4), tmp_path, progress=False
    )
    assert run.epochs[0]["loss"] > 0
