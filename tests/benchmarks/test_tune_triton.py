"""What the benchmarks do around Triton, as far as it can be seen without a GPU."""

from __future__ import annotations

import subprocess
import sys
from functools import partial

import pytest
import torch

from benchmarks import timing, tune_triton
from benchmarks.twins import Twins
from ragrad_ext.backends.reference import Reference
from ragrad_ext.backends.triton import tuning as triton_tuning
from ragrad_ext.backends.triton.tuning import Tuning


@pytest.mark.parametrize("kind", ["correct", "observe"])
def test_what_is_timed_is_the_verb_itself(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By another backend, for there is no GPU."""
    monkeypatch.setattr(tune_triton, "Triton", Reference)
    twins = Twins([(24, 8, 3, 3), (40, 80)], 0.25)
    work, restore = tune_triton.contender(kind, twins)
    result = work()
    if kind == "correct":
        assert torch.equal(result.mask, twins.mask)
    else:
        assert result.deviation.count_nonzero() == 0  # the history is the gradients
        assert result.g_theta.all()
    restore()
    assert twins.intact()


def test_the_search_finds_the_fastest_parameters() -> None:
    best = tune_triton.changed(Tuning(), "tile_bytes", 2 << 10)
    best = tune_triton.changed(best._replace(correct_warps=16, observe_blocks=6), "share", 16)
    flat = [*best[1:], *best.limits]

    def cost(tuned: Tuning) -> float:
        differs = sum(a != b for a, b in zip([*tuned[1:], *tuned.limits], flat, strict=True))
        return 1.0 + differs

    trials = [*tune_triton.search(Tuning(), cost)]
    assert trials[-1] == (best, 1.0)
    tried = [t for t, _ in trials[:-1]]
    assert len(tried) == len(set(tried))


def test_a_gain_within_the_noise_changes_nothing() -> None:
    trials = [*tune_triton.search(Tuning(), lambda t: 1 - 1e-4 * t.correct_warps)]
    assert trials[-1][0] == Tuning()


def test_the_table_is_written_as_it_is_read() -> None:
    with open(triton_tuning.__file__) as file:
        source = file.read()
    tuned = tune_triton.changed(Tuning(correct_blocks=3), "unit_bytes", 65536)
    for table in ({(9, 0): tuned, (8, 0): Tuning()}, {(10, 0): tuned}, {}):
        source = tune_triton.rendered(source, table)
        read = {"__name__": triton_tuning.__name__, "__package__": triton_tuning.__package__}
        exec(source, read)
        assert [(k, tuple(v)) for k, v in read["TABLE"].items()] == sorted(
            (k, tuple(v)) for k, v in table.items()
        )
        ruff = [sys.executable, "-m", "ruff", "format", "--check", "--line-length", "100", "-"]
        subprocess.run(ruff, input=source, text=True, check=True)


class Event:
    def __init__(self, seen: list[str]) -> None:
        self.record = partial(seen.append, "event")

    def elapsed_time(self, other: Event) -> float:
        return 30.0


class Device:
    """As much of a driver, and of a device's interface, as do_bench asks for."""

    def __init__(self, seen: list[str]) -> None:
        self.seen = seen

    def get_device_interface(self) -> Device:
        return self

    def Event(self, enable_timing: bool) -> Event:
        return Event(self.seen)

    def synchronize(self) -> None: ...

    def get_empty_cache_for_benchmark(self) -> None: ...

    def clear_cache(self, cache: object) -> None:
        self.seen.append("clear")


def test_do_bench_restores_before_each_call_and_outside_of_its_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    testing = pytest.importorskip("triton.testing")
    seen: list[str] = []
    monkeypatch.setattr(testing.runtime.driver, "_active", Device(seen))
    rival = timing.Contender(lambda: seen.append("work"), lambda: seen.append("restore"))
    assert timing.kernel_seconds(rival, captured=False) == 0.03
    timed = ["restore", "clear", "event", "work", "event"]
    assert seen[-len(timed) :] == timed
