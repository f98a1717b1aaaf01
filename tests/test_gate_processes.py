"""Sums of hooks under data parallelism: replicas score alike, or hooks stay away."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch import distributed as dist
from torch import multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

from ragrad_ext import Gate, RaGrad

from .networks import TwoStream, batch

pytestmark = pytest.mark.slow


def step(model: torch.nn.Module, streams: TwoStream, gate: Gate, part: slice) -> Tensor:
    """E of one step on a part of the batch."""
    ragrad = RaGrad(streams.rgb, streams.ir, effectiveness=gate)
    rgb, ir, label = batch()
    ragrad.backward(torch.nn.functional.cross_entropy(model(rgb[part], ir[part]), label[part]))
    ragrad.correct_()
    assert ragrad.repa.effect is not None
    return ragrad.repa.effect


def replica(rank: int, folder: Path) -> None:
    dist.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
    half = slice(4 * rank, 4 * rank + 4)
    found = {}
    for name, grouped in (("group", True), ("none", False)):
        model = TwoStream("group")
        gate = Gate(group=dist.group.WORLD if grouped else None)
        found[name] = step(DistributedDataParallel(model), model, gate, half)
        found[f"{name}, hooks refused"] = torch.tensor(gate.refuses_hooks() is not None)
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


def test_two_replicas_score_as_one_process_on_the_whole_batch(tmp_path: Path) -> None:
    mp.spawn(replica, (tmp_path,), nprocs=2)
    one, two = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    for name in ("group", "none"):
        assert torch.equal(one[name], two[name])
        model = TwoStream("group")
        whole = step(model, model, Gate(hooks=name == "group"), slice(None))
        assert torch.allclose(one[name], whole, rtol=1e-3, atol=1e-6)
        assert bool(one[f"{name}, hooks refused"]) == (name == "none")
