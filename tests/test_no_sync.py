"""Nothing in a step reads a value off the device: on a GPU each such read would wait for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ragrad_ext import FirstOrder, Gate, Hutchinson, RaGrad, Reliability, correct_
from ragrad_ext.estimators.effectiveness import Effectiveness
from ragrad_ext.estimators.research import Fisher

from .lib import cases
from .lib.networks import TwoStream, loss_of

READS = ("_local_scalar_dense", "nonzero", "equal", "masked_select", "is_nonzero", "unique")


class NoReads(TorchDispatchMode):
    """Refuses the operators whose result, or its shape, the host must know."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        if name in READS or (name == "index" and any(_is_mask(i) for i in args[1])):
            raise AssertionError(f"{name} reads a value off the device")
        return func(*args, **(kwargs or {}))


def _is_mask(index: Any) -> bool:
    return index is not None and index.dtype == torch.bool


def test_the_guard_sees_what_it_should() -> None:
    x = torch.ones(3)
    for read in (lambda: x.sum().item(), lambda: bool(x[0]), lambda: x[x > 0], lambda: x.nonzero()):
        with pytest.raises(AssertionError, match="off the device"), NoReads():
            read()


def test_correction_by_a_given_reliability() -> None:
    rgb, ir = cases.AWKWARD["several layers"]
    given = Reliability(*([torch.rand(len(x)) for x in side] for side in (rgb, ir)))
    twins = [x.clone() for x in rgb], [x.clone() for x in ir]
    with NoReads():
        record = correct_(*twins, given)
    assert record.count() > 0


@pytest.mark.parametrize("make", [Gate, FirstOrder, Fisher, lambda: Hutchinson(every=1)])
@pytest.mark.parametrize("scope", ["model", "layer"])
def test_a_whole_step(make: Callable[[], Effectiveness], scope: Any) -> None:
    model = TwoStream()
    ragrad = RaGrad(model.rgb, model.ir, effectiveness=make(), scope=scope)
    for t in range(2):
        model.zero_grad()
        loss = loss_of(model, t)
        with NoReads():
            ragrad.backward(loss)
            ragrad.correct_()
    assert ragrad.last is not None
    assert ragrad.last.fraction() >= 0
