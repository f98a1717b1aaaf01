"""What a refresh adds to a step: time and peak memory, both in steps, taken in turn."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn
from torch.profiler import ProfilerActivity, profile

from ragrad_ext import Effectiveness, FirstOrder, RaGrad

from .judge import Estimators, step
from .subjects import Subject


def cost(subject: Subject, estimators: Estimators, repeats: int) -> dict[str, Any]:
    """(step with a refresh - step with FirstOrder) / plain step, per estimator, for this batch.

    A step is forward, backward and correction; FirstOrder needs nothing beyond what these do, and
    a plain step has no correction. Time is the median over rounds in each of which every estimator
    takes one step. Memory is what torch's CPU allocator holds at most during a step, beside
    parameters and buffers.
    """
    free = _bound(subject, FirstOrder)
    all_ = {name: _bound(subject, make) for name, make in estimators.items()}
    base, samples = [], {name: list[float]() for name in all_}
    for _ in range(repeats):
        plain = timed(lambda: _plain(subject))
        without = timed(lambda: step(subject, free))
        base.append(plain)
        for name, ragrad in all_.items():
            seconds = timed(partial(step, subject, ragrad))
            samples[name].append((seconds - without) / plain)
    tensors = [*subject.model.parameters(), *subject.model.buffers()]
    resident = sum(t.numel() * t.element_size() for t in tensors)
    whole = resident + peak_bytes(subject.model, lambda: _plain(subject))
    without_ = peak_bytes(subject.model, lambda: step(subject, free))
    return {
        "step_seconds": statistics.median(base),
        "step_bytes": whole,
        "added_steps": {name: statistics.median(x) for name, x in samples.items()},
        "added_memory": {
            name: (peak_bytes(subject.model, partial(step, subject, ragrad)) - without_) / whole
            for name, ragrad in all_.items()
        },
    }


def timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def peak_bytes(model: nn.Module, work: Callable[[], object]) -> int:
    """The most that torch's CPU allocator held during ``work``, beyond what it held before.

    There are no gradients before, so those of the step count.
    """
    model.zero_grad()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        work()
    assert found.profiler is not None
    assert found.profiler.kineto_results is not None
    events = [e for e in found.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def _plain(subject: Subject) -> None:
    subject.model.zero_grad()
    subject.loss().backward()


def _bound(subject: Subject, make: Callable[[], Effectiveness]) -> RaGrad:
    """After a first step, which traces and fills memory that later steps find there."""
    # no sensitivity: a history as large as the weights for each would only fill memory
    ragrad = RaGrad(subject.rgb, subject.ir, effectiveness=make(), factors="effectiveness")
    step(subject, ragrad)
    return ragrad
