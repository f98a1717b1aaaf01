"""Estimators that measure on some steps, and hold what they measured in between."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from ..backends.contract import RowSums
from ..rows.bucket import Bucket
from ..rows.twins import Twins
from .effectiveness import Closure, Effectiveness
from .graph_change import GraphChange
from .processes import mean_over, several
from .schedule import Schedule


class Refreshed(Effectiveness):
    """A number per row that is measured on some steps (a refresh) and held in between.

    A new estimator of this kind writes one of two methods:

    - ``from_graph(loss, closure)`` measures one micro-batch before its backward;
    - ``from_closure(closure)`` measures it after its backward, from the closure alone.

    If it must, it also overrides ``complete`` and ``estimate``. It leaves the other methods alone;
    `Repa` calls them.

    A refresh is summed over the micro-batches of its step, as the gradient is. If it runs out of
    memory it is dropped, with one warning, and the step goes on as if no refresh had been due.

    The closure may compute the loss of a part of the batch, for a cheaper refresh. Its loss must
    then have the scale of the whole batch's (a mean does).

    Args:
        schedule: fields of `Schedule`, as keyword arguments.

    Attributes:
        held: what was measured, (2, rows) float64: q of Eq. 2 unless the subclass says otherwise.
        step: the number of the current step, from 0.
        part, layers: the part of a refresh that this step measures (None: none), and its pairs.
        measured: the parts that were measured since the start, or since the model changed.
        taken: (2, rows) int64, how many refreshes each row's value is a mean of.
        dropped: () int64, how many row values were not finite, or absent, and left ``held`` as it
            was.
        skipped: how many refreshes ran out of memory.
        draws: how many random draws were used so far, for estimators that draw.
    """

    def __init__(self, **schedule: Any) -> None:
        self.schedule = Schedule(**schedule)

    # A subclass writes these.

    def from_graph(self, loss: Tensor, closure: Closure | None) -> Tensor | None:
        """Measure one micro-batch while its graph is alive: (2, rows) float64, or None.

        Only the rows of ``layers`` are read. An estimator that will need a closure says so here,
        by ``needed(closure)``, before any gradient exists.
        """
        return None

    def from_closure(self, closure: Closure) -> Tensor | None:
        """The same from the closure alone, after the graph was freed."""
        return None

    def complete(self, measured: Tensor, bucket: Bucket) -> Tensor:
        """Finish the sum over the micro-batches, now that the gradients of the step exist."""
        return measured

    def estimate(self, bucket: Bucket, sums: RowSums) -> Tensor:
        """E from ``held``, (2, rows) float64. Default, Eq. 2: ``-sum_j g_j theta_j + q``."""
        return -sums.g_theta + self.held if self.whole else -sums.g_theta

    # A subclass reads these.

    @property
    def due(self) -> bool:
        """Whether this step has a refresh, or a part of one."""
        return self.part is not None

    @property
    def whole(self) -> bool:
        """Whether every part has been measured."""
        return self.measured >= set(range(self.schedule.spread))

    def needed(self, closure: Closure | None) -> Closure:
        """The closure, or a RuntimeError that says which estimators do without one."""
        if closure is None:
            raise RuntimeError(
                f"{type(self).__name__} computes the loss again: call "
                "ragrad.backward(loss, closure=lambda: criterion(model(x), y)). Gate, FirstOrder "
                "and Hutchinson need no closure"
            )
        return closure

    # `Repa` calls these.

    def bind(self, twins: Twins) -> None:
        super().bind(twins)
        self.step = self.draws = self.skipped = 0
        self.held = torch.zeros(2, twins.layout.rows, dtype=torch.float64, device=twins.device)
        self.taken = torch.zeros_like(self.held, dtype=torch.int64)
        self.dropped = torch.zeros((), dtype=torch.int64, device=twins.device)
        self.measured: set[int] = set()
        self._graph = GraphChange(twins)
        self._begin_step()

    def _begin_step(self) -> None:
        self.part = self.schedule.part(self.step)
        pairs = range(len(self.twins.layout.channels))
        self.layers: Sequence[int] = (
            () if self.part is None else pairs[self.part :: self.schedule.spread]
        )
        self._sum: Tensor | None = None  # over the micro-batches so far
        self._given_up = False  # ran out of memory in one of them
        self._changed = False  # the model, since the last refresh

    def before_backward(self, loss: Tensor, closure: Closure | None = None) -> None:
        if several() and self.schedule.group is None:
            name = type(self).__name__
            raise RuntimeError(
                f"{name} measures on this process's part of the batch, and {dist.get_world_size()} "
                f"processes train: their replicas would drift apart. Pass {name}(..., group="
                "torch.distributed.group.WORLD) to average what they measure, or use Gate or "
                "FirstOrder, which read gradients that are averaged already"
            )
        if not self.due or self._given_up:
            return
        self._to(self.twins.device)
        if not self.layers:  # more parts than pairs
            self._add(torch.zeros_like(self.held))
            return
        if self._sum is None and self._graph.changed(loss):
            warnings.warn(
                f"the model has changed since {type(self).__name__} last measured: other operators "
                "use the paired weights. Earlier measurements are dropped",
                stacklevel=2,
            )
            self._changed = True
        with self._unless_out_of_memory():
            self._add(self.from_graph(loss, closure))

    def after_backward(self, closure: Closure | None = None) -> None:
        if self.due and self.layers and not self._given_up and closure is not None:
            with self._unless_out_of_memory():
                self._add(self.from_closure(closure))

    def check_ready(self) -> None:
        if self.due and self._sum is None and not self._given_up:
            name = type(self).__name__
            raise RuntimeError(
                f"{name} must see the loss of this step, and did not: call ragrad.backward(loss) "
                "in place of loss.backward(), or use Gate or FirstOrder, which need no loss"
            )

    def effect(self, bucket: Bucket, sums: RowSums) -> Tensor:
        self._to(sums.g_theta.device)
        if self._sum is not None:
            with self._unless_out_of_memory():
                self._sum = self.complete(self._sum, bucket)
        if self.schedule.group is not None and self.due and self.layers:
            self._average_over(self.schedule.group)
        if self._changed:
            self.held, self.taken = torch.zeros_like(self.held), torch.zeros_like(self.taken)
            self.measured = set()
        if self._sum is not None:
            self._take(self._sum)
        effect = self.estimate(bucket, sums)
        self.step += 1
        self._begin_step()
        return effect

    def _to(self, device: torch.device) -> None:
        """Follow a model that was moved after it was paired."""
        if self.held.device != device:
            self.held, self.taken, self.dropped = (
                t.to(device) for t in (self.held, self.taken, self.dropped)
            )

    def _add(self, measured: Tensor | None) -> None:
        if measured is not None:
            self._sum = measured if self._sum is None else self._sum + measured

    @contextmanager
    def _unless_out_of_memory(self) -> Iterator[None]:
        """Give up this step's refresh if memory runs out; any other error passes."""
        try:
            yield
        except RuntimeError as error:
            self._sum = None
            if not ran_out_of_memory(error):
                raise
            self._given_up = True
            self.skipped += 1
            if self.skipped == 1:
                warnings.warn(
                    f"{type(self).__name__} ran out of memory and skips this refresh ({error}). "
                    "The step goes on; `skipped` counts such refreshes. A closure over a part of "
                    "the batch needs less memory, and Gate needs none",
                    stacklevel=4,
                )

    def _average_over(self, group: dist.ProcessGroup) -> None:
        """The mean of what all processes measured; nothing if one of them gave up."""
        mine = torch.zeros_like(self.held) if self._sum is None else self._sum
        flags = mine.new_tensor([self._sum is None, self._changed])
        mean, flags = mean_over(group, [mine, flags])
        gave_up, self._changed = flags.bool().tolist()  # waits for the device, on these steps only
        self._sum = None if gave_up else mean

    def _take(self, new: Tensor) -> None:
        """Average the rows of ``layers`` that are finite into ``held``."""
        here = torch.zeros(new.shape[1], dtype=torch.bool, device=new.device)
        slices = self.twins.layout.slices()
        for l in self.layers:
            here[slices[l]] = True
        finite = new.isfinite() & here
        self.taken = self.taken + finite
        beta = self.schedule.average
        weight = (1 - beta) / (1 - beta ** self.taken.double())
        averaged = (1 - weight) * self.held + weight * new
        self.held = torch.where(finite, averaged, self.held)
        self.dropped = self.dropped + (here & ~finite).sum()
        assert self.part is not None
        self.measured.add(self.part)

    def state_dict(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "draws": self.draws,
            "skipped": self.skipped,
            "measured": sorted(self.measured),
            "held": self.held.clone(),
            "taken": self.taken.clone(),
            "dropped": self.dropped.clone(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.step, self.draws, self.skipped = (state[k] for k in ("step", "draws", "skipped"))
        self.measured = set(state["measured"])
        device = self.twins.device
        self.held, self.taken, self.dropped = (
            state[k].to(device, copy=True) for k in ("held", "taken", "dropped")
        )
        self._graph = GraphChange(self.twins)
        self._begin_step()


def ran_out_of_memory(error: RuntimeError) -> bool:
    """Whether an allocation failed; on the CPU such an error has no type of its own."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
