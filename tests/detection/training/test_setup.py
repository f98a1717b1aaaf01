"""What a run starts with: weights, optimizer, learning rate, an empty meter."""

from __future__ import annotations

import math

import pytest
from torch import nn

from ragrad_ext.detection.settings import Settings
from ragrad_ext.detection.training.meter import Meter
from ragrad_ext.detection.training.model import make_model
from ragrad_ext.detection.training.optimizer import learning_rate, make_optimizer

from ...lib.runs import TINY, same


def test_both_methods_start_from_the_same_weights() -> None:
    none, ragrad = (make_model(TINY.change(method=m), 3).state_dict() for m in ("none", "ragrad"))
    assert same(dict(none), dict(ragrad))
    other = make_model(TINY.change(seed=1), 3).state_dict()
    assert not same(dict(none), dict(other))


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


def test_the_meter_averages() -> None:
    meter = Meter(loss=6.0, steps=3, seconds=1.5, conflicts=0.5, reads=2)
    row = {"epoch": 1, "loss": 2.0, "lr": 0.1, "seconds": 1.5, "conflicts": 0.25}
    assert meter.row(1, 0.1) == row
    assert "conflicts" not in Meter(loss=6.0, steps=3).row(1, 0.1)
