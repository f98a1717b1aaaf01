"""Runs side by side: the same bits, one set of images, clean stops, errors with a name."""

from __future__ import annotations

import multiprocessing
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from ragrad_ext.detection import jobs
from ragrad_ext.detection.data.splits import open_splits
from ragrad_ext.detection.jobs import sensible_jobs, train_in_turn, train_side_by_side
from ragrad_ext.detection.runs import read_run
from ragrad_ext.detection.training.checkpoint import load_checkpoint
from ragrad_ext.detection.training.progress import Bar, Progress
from ragrad_ext.detection.training.stopping import Interrupted
from ragrad_ext.detection.training.train import train

from ..lib.folders import write_folder
from ..lib.runs import TINY, same

METHODS = ("none", "ragrad")


def at_step(number: int, act: Callable[[], object]) -> type[Bar]:
    """A bar that acts when the progress of that step, of any run, arrives for the first time."""
    left = iter([act])

    class Acting(Bar):
        def __call__(self, progress: Progress) -> None:
            if progress.step == number and (do := next(left, None)):
                do()

    return Acting


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C as at a terminal: a background job may have inherited that it is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.slow
@pytest.mark.usefixtures("interruptible")
def test_runs_share_the_images_save_on_ctrl_c_and_have_the_bits_of_runs_in_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folder(tmp_path / "data", train=4, val=2)
    settings = TINY.change(data=str(tmp_path / "data"), epochs=12, evaluate_every=12)
    data, threads = open_splits(settings), torch.get_num_threads()
    shutil.rmtree(tmp_path / "data")  # from here on nothing can be read
    side, turn = (
        {tmp_path / f"{how}-{method}": settings.change(method=method) for method in METHODS}
        for how in ("side", "turn")
    )
    with monkeypatch.context() as patch:
        patch.setattr(jobs, "Bar", at_step(2, lambda: signal.raise_signal(signal.SIGINT)))
        with pytest.raises(Interrupted, match=r"0 of 2 runs finished, .*--resume"):
            train_side_by_side(side, data, jobs=2, threads=threads, progress=False)
    expected = train_in_turn(turn, data, progress=False)
    for here, there in zip(side, turn, strict=True):
        assert read_run(here) is None
        resumed = train(side[here], here, data=data, resume=True, progress=False)
        assert same(resumed.ap, expected[there].ap)
        assert same(*(load_checkpoint(where / "checkpoint.pt") for where in (here, there)))


@pytest.mark.slow
def test_an_error_names_its_run_and_the_others_are_saved(tmp_path: Path) -> None:
    settings = TINY.change(epochs=500, scenes=4, evaluate_every=500)
    bad = settings.change(lr=1e30, warmup=0.0)
    plan = {tmp_path / "bad": bad, tmp_path / "good": settings, tmp_path / "later": settings}
    with pytest.raises(
        FloatingPointError, match=r"^run bad: the loss is (nan|inf) in epoch 2, .*[^$]*--resume"
    ):
        train_side_by_side(plan, open_splits(settings), jobs=2, threads=1, progress=False)
    assert load_checkpoint(tmp_path / "good" / "checkpoint.pt")["epoch"] < 500
    assert not (tmp_path / "later").exists()


@pytest.mark.slow
def test_a_killed_process_names_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = TINY.change(epochs=500, scenes=4, evaluate_every=500)
    kill = at_step(1, lambda: [child.kill() for child in multiprocessing.active_children()])
    monkeypatch.setattr(jobs, "Bar", kill)
    with pytest.raises(RuntimeError, match=r"^run only: .*exit code -9 .*fewer --jobs"):
        train_side_by_side(
            {tmp_path / "only": settings}, open_splits(settings), jobs=1, threads=1, progress=False
        )


def test_an_error_in_this_process_names_its_run_too(tmp_path: Path) -> None:
    plan = {tmp_path / "seed3": TINY.change(init=str(tmp_path / "none.pt"))}
    with pytest.raises(OSError, match=r"^run seed3: no checkpoint at "):
        train_in_turn(plan, open_splits(TINY), progress=False)


def test_one_run_at_a_time_on_a_gpu_and_one_per_core_on_a_cpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(jobs, "usable_cores", lambda: 4)
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert [sensible_jobs(runs, cpu) for runs in (1, 4, 6)] == [1, 4, 4]
    assert sensible_jobs(6, gpu) == 1
