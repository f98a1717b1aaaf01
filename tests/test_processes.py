"""Data parallelism: replicas correct alike, so that they stay replicas."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch import multiprocessing as mp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from ragrad_ext import (
    Effectiveness,
    FiniteDifference,
    Gate,
    Hutchinson,
    RaGrad,
    Reliability,
    correct_,
)
from ragrad_ext.estimators import Refreshed, Schedule
from ragrad_ext.estimators.research import (
    Fisher,
    GateQuadratic,
    GaussNewtonBartlett,
    Removal,
    RowQuadratic,
    sampled_cross_entropy,
)

from .lib.networks import TwoStream, assert_near, batch
from .lib.tolerances import FLOAT64_SUM, REPLICAS

pytestmark = pytest.mark.slow

ALONE: dict[str, Callable[[], Effectiveness]] = {"Gate": Gate, "Fisher": Fisher}
MEASURING: dict[str, Callable[..., Refreshed]] = {
    "Hutchinson": Hutchinson,
    "FiniteDifference": FiniteDifference,
    "one-sided": lambda **how: FiniteDifference(sides=1, **how),
    "RowQuadratic": RowQuadratic,
    "GateQuadratic": GateQuadratic,
    "GaussNewtonBartlett": GaussNewtonBartlett,
    "Removal": Removal,
}


class Starving(Hutchinson):
    """The second process has no memory for its second refresh."""

    def from_graph(self, loss: Tensor, closure: Any) -> Tensor | None:
        if self.step == 2 and dist.get_rank() == 1:
            raise torch.OutOfMemoryError("for the test")
        return super().from_graph(loss, closure)


def in_two_processes(of_each: Callable[[], dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
    """The results of ``of_each`` in each of two processes of one group."""
    mp.spawn(_process, (of_each, folder), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


def _process(rank: int, of_each: Callable[[], dict[str, Any]], folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
    torch.save(of_each(), folder / f"{rank}.pt")
    dist.destroy_process_group()


def own_half(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    half = slice(4 * dist.get_rank(), 4 * dist.get_rank() + 4)
    rgb, ir, label = batch(seed)
    return rgb[half], ir[half], label[half]


def effect_of(
    model: nn.Module, streams: TwoStream, estimator: Effectiveness, *of: Tensor
) -> Tensor:
    """E of one step on the images and labels ``of``."""
    ragrad = RaGrad(streams.rgb, streams.ir, effectiveness=estimator)
    rgb, ir, label = of

    def loss() -> Tensor:
        return nn.functional.cross_entropy(model(rgb, ir), label)

    ragrad.backward(loss(), closure=loss)
    ragrad.correct_()
    assert ragrad.repa.effect is not None
    return ragrad.repa.effect


def effects_by_hooks() -> dict[str, Any]:
    found = {}
    for name, grouped in (("group", True), ("none", False)):
        model = TwoStream("group")
        gate = Gate(group=dist.group.WORLD if grouped else None)
        found[name] = effect_of(DistributedDataParallel(model), model, gate, *own_half())
        found[f"{name}, hooks refused"] = torch.tensor(gate.refuses_hooks() is not None)
    return found


def test_two_replicas_measure_what_one_process_does_on_the_whole_batch(tmp_path: Path) -> None:
    one, two = in_two_processes(effects_by_hooks, tmp_path)
    for name in ("group", "none"):
        assert torch.equal(one[name], two[name])
        model = TwoStream("group")
        whole = effect_of(model, model, Gate(hooks=name == "group"), *batch())
        assert_near(one[name], whole, REPLICAS)
        assert bool(one[f"{name}, hooks refused"]) == (name == "none")


def trained() -> dict[str, Any]:
    """The weights after three steps of two micro-batches, by estimator."""
    group = dist.group.WORLD
    estimators: dict[str, Effectiveness] = {
        **{name: make() for name, make in ALONE.items()},
        **{name: make(every=2, group=group) for name, make in MEASURING.items()},
        "out of memory": Starving(every=2, group=group),
    }
    return {name: _train(name, estimator) for name, estimator in estimators.items()}


def _train(name: str, estimator: Effectiveness) -> dict[str, Any]:
    streams = TwoStream(dropout=0.1)
    model = DistributedDataParallel(streams, gradient_as_bucket_view=True)
    optimizer = torch.optim.AdamW(streams.parameters(), lr=0.01)
    ragrad = RaGrad(streams.rgb, streams.ir, effectiveness=estimator)
    torch.manual_seed(dist.get_rank())
    corrected = 0
    for step in range(3):
        optimizer.zero_grad()
        micro(step, model, ragrad, name)
        ragrad.correct_()
        assert ragrad.last is not None
        corrected += int(ragrad.last.count())
        optimizer.step()
    return {
        "weights": torch.cat([p.detach().flatten() for p in streams.parameters()]),
        "effect": ragrad.repa.effect,
        "corrected": corrected,
        "skipped": estimator.skipped if isinstance(estimator, Refreshed) else 0,
        "measured": estimator.taken if isinstance(estimator, Refreshed) else None,
    }


def micro(step: int, model: DistributedDataParallel, ragrad: RaGrad, name: str) -> None:
    for last in (False, True):
        rgb, ir, label = own_half(2 * step + last)

        def loss(of: tuple[Tensor, ...] = (rgb, ir, label)) -> Tensor:
            return nn.functional.cross_entropy(model(*of[:2]), of[2])

        def drawn(of: tuple[Tensor, ...] = (rgb, ir)) -> Tensor:
            return sampled_cross_entropy(model(*of))

        closure = drawn if name == "GaussNewtonBartlett" else loss
        if last:
            ragrad.backward(loss(), closure=closure)
        else:
            with model.no_sync():
                ragrad.backward(loss(), closure=closure)


def test_replicas_stay_equal_bit_for_bit_in_training(tmp_path: Path) -> None:
    one, two = in_two_processes(trained, tmp_path)
    assert set(one) == {*ALONE, *MEASURING, "out of memory"}
    for name in one:
        assert torch.equal(one[name]["effect"], two[name]["effect"]), name
        assert torch.equal(one[name]["weights"], two[name]["weights"]), name
        assert one[name]["corrected"] == two[name]["corrected"] > 0, name
    lack = one.pop("out of memory"), two.pop("out of memory")
    assert [side["skipped"] for side in lack] == [0, 1]
    assert all((side["measured"] == 1).all() for side in lack)  # both lose the refresh
    assert all((one[name]["measured"] == 2).all() for name in MEASURING)


def measured_alone_and_together() -> dict[str, Any]:
    """q of one refresh, of this process and of both, by the same draws; and their seed."""
    own_seed = Schedule(group=dist.group.WORLD).own_seed
    found: dict[Any, Any] = {"seed": own_seed}
    for name in ("FiniteDifference", "Removal"):
        for how in ("alone", "together"):
            group = dist.group.WORLD if how == "together" else _own_group()
            seed = own_seed if how == "alone" else 0
            estimator = MEASURING[name](group=group, seed=seed)
            model = TwoStream("none")
            effect_of(model, model, estimator, *own_half())
            found[name, how] = estimator.held
    return found


def _own_group() -> dist.ProcessGroup:
    groups = [dist.new_group([rank]) for rank in (0, 1)]
    own = groups[dist.get_rank()]
    assert own is not None
    return own


def test_what_is_kept_is_the_mean_of_what_the_processes_measured(tmp_path: Path) -> None:
    one, two = in_two_processes(measured_alone_and_together, tmp_path)
    assert one["seed"] == 0 != two["seed"]  # two processes, twice the probes
    for name in ("FiniteDifference", "Removal"):
        mean = (one[name, "alone"] + two[name, "alone"]) / 2
        torch.testing.assert_close(one[name, "together"], mean, rtol=FLOAT64_SUM, atol=0)
        assert not torch.equal(one[name, "alone"], two[name, "alone"]), name


def sharded() -> dict[str, Any]:
    model = TwoStream("none")
    for part in (model.rgb, model.ir, model.head):
        fully_shard(part, mesh=init_device_mesh("cpu", (2,)))
    errors = {}
    try:
        RaGrad(model.rgb, model.ir)
    except TypeError as error:
        errors["weights"] = str(error)
    rgb, ir, label = own_half()
    nn.functional.cross_entropy(
        model.head((model.rgb(rgb) + model.ir(ir)).flatten(1)), label
    ).backward()
    grads = [[p.grad for p in side.parameters() if p.ndim == 4] for side in (model.rgb, model.ir)]
    given = [torch.rand(len(g)) for g in grads[0] if g is not None]
    try:
        correct_(*grads, Reliability(given, given))
    except TypeError as error:
        errors["gradients"] = str(error)
    return errors


def test_sharded_weights_and_gradients_are_refused(tmp_path: Path) -> None:
    for errors in in_two_processes(sharded, tmp_path):
        assert errors["weights"].startswith("weights_rgb[0] is sharded over processes (DTensor)")
        assert errors["gradients"].startswith("grads_rgb[0] is sharded over processes (DTensor)")


def refused() -> dict[str, Any]:
    errors = {}
    for name, make in MEASURING.items():
        model = TwoStream()
        before = torch.cat([p.detach().clone().flatten() for p in model.parameters()])
        try:
            effect_of(model, model, make(), *own_half())
        except RuntimeError as error:
            errors[name] = str(error)
        assert torch.equal(before, torch.cat([p.flatten() for p in model.parameters()]))
        assert all(p.grad is None for p in model.parameters())
    return errors


def test_measuring_without_a_group_is_an_error_before_the_first_backward(tmp_path: Path) -> None:
    for errors in in_two_processes(refused, tmp_path):
        assert set(errors) == set(MEASURING)
        for name, make in MEASURING.items():
            kind = type(make()).__name__
            assert f"{kind}(..., group=torch.distributed.group.WORLD)" in errors[name]
