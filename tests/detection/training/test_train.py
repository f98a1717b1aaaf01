"""Whole runs, tiny: what they leave, and that a stopped one continues bit for bit."""

from __future__ import annotations

import csv
import json
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ragrad_ext.detection.data.splits import open_split
from ragrad_ext.detection.files import write_json
from ragrad_ext.detection.runs import FILES, read_run
from ragrad_ext.detection.settings import Settings
from ragrad_ext.detection.training import loop
from ragrad_ext.detection.training import train as train_module
from ragrad_ext.detection.training.checkpoint import load_checkpoint, save_checkpoint
from ragrad_ext.detection.training.model import trained_model
from ragrad_ext.detection.training.optimizer import learning_rate
from ragrad_ext.detection.training.stopping import Interrupted, stop_signal
from ragrad_ext.detection.training.train import train

from ...lib.runs import TINY, same


@pytest.fixture
def stop_at(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """Presses Ctrl-C after the step of that number, counted from 1 over the whole call."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def arrange(number: int) -> None:
        left = iter(range(number - 1, -1, -1))

        class Pressing(train_module.Bar):
            def __call__(self, progress: Any) -> None:
                if next(left, None) == 0:
                    signal.raise_signal(signal.SIGINT)

        monkeypatch.setattr(train_module, "Bar", Pressing)

    yield arrange
    signal.signal(signal.SIGINT, before)


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


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
    assert set(contents(straight)) == set(FILES)
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
    monkeypatch.setattr(train_module, "Trainer", None)
    before = contents(straight)
    run = train(TINY, straight, resume=True)
    assert run.ap["overall"]["AP"] == json.loads(before["metrics.json"])["ap"]["overall"]["AP"]
    assert contents(straight) == before


def test_a_run_is_never_overwritten_by_accident(straight: Path) -> None:
    before = contents(straight)
    with pytest.raises(FileExistsError, match="already holds a run; use --resume"):
        train(TINY, straight)
    with pytest.raises(ValueError, match=r"other settings \(lr: 0.002 there, 0.01 here\)"):
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


def test_overwrite_starts_again(tmp_path: Path) -> None:
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
    rates = {2: 1e30}  # in the first step of the second epoch

    def burst(settings: Settings, step: int, per_epoch: int) -> float:
        return rates.get(step) or learning_rate(settings, step, per_epoch)

    monkeypatch.setattr(loop, "learning_rate", burst)
    with pytest.raises(
        FloatingPointError, match=r"the loss is (nan|inf) in epoch 2, step 2; .*lower --lr"
    ):
        train(TINY, tmp_path, progress=False)
    assert load_checkpoint(tmp_path / "checkpoint.pt")["epoch"] == 1
    assert read_run(tmp_path) is None


def test_a_trained_model_comes_back(straight: Path) -> None:
    state = load_checkpoint(straight / "checkpoint.pt")
    model = trained_model(state, open_split(TINY, "val").classes, straight)
    assert same(dict(model.state_dict()), dict(state["model"]))


def test_init_starts_from_a_checkpoint_of_the_same_classes(
    straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[dict[str, Tensor]] = []

    def run(self: Any, watch: Any, stop: Any) -> Any:
        begun.append(self.model.state_dict())
        return read_run(straight)

    monkeypatch.setattr(loop.Trainer, "run", run)
    shutil.copy(straight / "checkpoint.pt", tmp_path / "seed3.pt")
    here = TINY.change(init=str(tmp_path / "seed{seed}.pt"), seed=3)
    train(here.change(method="none"), tmp_path / "out", progress=False)
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at .*seed4\.pt"):
        train(here.change(seed=4), tmp_path / "other")
    with pytest.raises(ValueError, match="holds another model"):
        train(here.change(backbone="resnet18"), tmp_path / "other")
    assert not (tmp_path / "other").exists()
    assert same(dict(begun[0]), load_checkpoint(straight / "checkpoint.pt")["model"])


@pytest.mark.parametrize("effectiveness", ["hutchinson", "finite-difference", "fisher"])
def test_every_estimator_trains(tmp_path: Path, effectiveness: Any) -> None:
    run = train(
        TINY.change(effectiveness=effectiveness, epochs=1, scenes=4), tmp_path, progress=False
    )
    assert run.epochs[0]["loss"] > 0
