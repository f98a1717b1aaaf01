"""The schedule of estimators that measure on some steps: refresh, average, hold."""

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
from .graph_change import Surroundings, surroundings
from .processes import mean_over, rank, several
from .taylor.probes import mixed


class Refreshed(Effectiveness):
    """``q``, a number per row, measured on some steps and held in between: (2, rows) float64.

    A refresh sums over the micro-batches of its step as the gradient does. One that runs out of
    memory is skipped, whole, with one warning; the step goes on as if it had not been due.

    The closure of ``ragrad.backward`` may compute the loss of part of the batch, for a cheaper
    refresh: q is then that part's, so its loss must have the scale of the whole (a mean does).

    Args:
        every: steps between refreshes; the first step is one.
        average: beta of ``q <- beta q + (1 - beta) q_new``, corrected for its start as Adam's
            moments are: q is a weighted mean of the refreshes so far, never drawn to 0. With 0 it
            is the latest.
        spread: the parts of a refresh. Pair l belongs to part ``l % spread``; parts are measured
            at equal distances within ``every`` steps. Until each was, all rows are first order.
        seed: of what is drawn, which never touches torch's own random state.
        group: the processes that average gradients (DDP). Each measures on its own part of the
            batch, with draws of its own, and q is their mean. Several processes without it are an
            error: their replicas would drift apart.

    Attributes:
        dropped: () int64, how many row values were not finite, or absent, and left q as it was.
        skipped: how many refreshes ran out of memory.
    """

    def __init__(
        self,
        *,
        every: int = 10,
        average: float = 0.0,
        spread: int = 1,
        seed: int = 0,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        if every < 1:
            raise ValueError(f"every={every}; q is refreshed every 1, 2, ... steps")
        if not 0 <= average < 1:
            raise ValueError(f"average={average}; the share of the old q lies in [0, 1)")
        if not 1 <= spread <= every:
            raise ValueError(f"spread={spread}; {every} steps hold 1 to {every} parts of a refresh")
        self.every, self.average, self.spread = every, average, spread
        self.seed, self.group = seed, group

    def bind(self, twins: Twins) -> None:
        super().bind(twins)
        self.step = 0
        self.draws = 0
        self.skipped = 0
        self.q = torch.zeros(2, twins.layout.rows, dtype=torch.float64, device=twins.device)
        self.taken = torch.zeros_like(self.q, dtype=torch.int64)
        self.dropped = torch.zeros((), dtype=torch.int64, device=twins.device)
        self.measured: set[int] = set()
        self._surroundings: Surroundings | None = None
        self._changed = False
        self._pending: Tensor | None = None
        self._given_up = False

    @property
    def part(self) -> int | None:
        """Which part of the pairs this step measures; None if none."""
        phase = self.step % self.every
        return next((p for p in range(self.spread) if p * self.every // self.spread == phase), None)

    @property
    def due(self) -> bool:
        """Whether this step refreshes any part of q."""
        return self.part is not None

    @property
    def layers(self) -> Sequence[int]:
        """The pairs that this step measures."""
        layers = range(len(self.twins.layout.channels))
        return layers[self.part :: self.spread] if self.part is not None else ()

    def from_graph(self, loss: Tensor, closure: Closure | None) -> Tensor | None:
        """q of one micro-batch, while its graph is alive: (2, rows) float64, or None if not now.

        Only the rows of ``layers`` are read. A closure that will be needed is missed here.
        """
        return None

    def from_closure(self, closure: Closure) -> Tensor | None:
        """Likewise from the closure alone, when the graph is gone and its memory free."""
        return None

    def complete(self, measured: Tensor, bucket: Bucket) -> Tensor:
        """The q of a step from the sum over its micro-batches, once its gradients are there."""
        return measured

    def estimate(self, bucket: Bucket, sums: RowSums) -> Tensor:
        """E, (2, rows), from q as it is now. Here Eq. 2: ``-sum_j g_j theta_j + q``."""
        return -sums.dot + self.q if self.whole else -sums.dot

    @property
    def whole(self) -> bool:
        """Whether every part has been measured."""
        return self.measured >= set(range(self.spread))

    @property
    def own_seed(self) -> int:
        """The seed of this process's draws: n processes have n times as many."""
        mine = rank(self.group)
        return mixed(self.seed, mine) if mine else self.seed

    def before_backward(self, loss: Tensor, closure: Closure | None = None) -> None:
        if several() and self.group is None:
            name = type(self).__name__
            raise RuntimeError(
                f"{name} measures on this process's part of the batch, and {dist.get_world_size()} "
                f"processes train: their replicas would drift apart. Pass {name}(..., group="
                "torch.distributed.group.WORLD), so that they average what they measure; Gate, "
                "FirstOrder and Fisher read gradients that are averaged already"
            )
        if not self.due or self._given_up:
            return
        self._to(self.twins.device)
        if not self.layers:  # more parts than pairs
            self._add(torch.zeros_like(self.q))
            return
        if self._pending is None:
            self._notice_change(loss)
        with self._unless_out_of_memory():
            self._add(self.from_graph(loss, closure))

    def after_backward(self, closure: Closure | None = None) -> None:
        if self.due and self.layers and not self._given_up and closure is not None:
            with self._unless_out_of_memory():
                self._add(self.from_closure(closure))

    def check_ready(self) -> None:
        if self.due and self._pending is None and not self._given_up:
            name = type(self).__name__
            raise RuntimeError(
                f"{name} must see the loss of this step, and did not: call ragrad.backward(loss) "
                "in place of loss.backward(). Without the loss, Gate, FirstOrder and Fisher remain"
            )

    def scores(self, bucket: Bucket, sums: RowSums) -> Tensor:
        self._to(sums.dot.device)
        if self._pending is not None:
            with self._unless_out_of_memory():
                self._pending = self.complete(self._pending, bucket)
        if self.group is not None and self.due and self.layers:
            self._agree(self.group)
        if self._changed:
            self.q, self.taken = torch.zeros_like(self.q), torch.zeros_like(self.taken)
            self.measured = set()
        if self._pending is not None:
            self._take(self._pending)
        self._pending, self._given_up, self._changed = None, False, False
        self.step += 1
        return self.estimate(bucket, sums)

    def needed(self, closure: Closure | None) -> Closure:
        """The closure, or the error that says what remains without one."""
        if closure is None:
            raise RuntimeError(
                f"{type(self).__name__} computes the loss anew: call "
                "ragrad.backward(loss, closure=lambda: criterion(model(x), y)). Without a closure "
                "the estimators that remain are Gate, FirstOrder, Fisher and Hutchinson, and "
                "RowQuadratic and GateQuadratic by double backward"
            )
        return closure

    def _to(self, device: torch.device) -> None:
        """Follow a model that was moved after it was paired."""
        if self.q.device != device:
            self.q, self.taken, self.dropped = (
                t.to(device) for t in (self.q, self.taken, self.dropped)
            )

    def _add(self, q: Tensor | None) -> None:
        if q is not None:
            self._pending = q if self._pending is None else self._pending + q

    @contextmanager
    def _unless_out_of_memory(self) -> Iterator[None]:
        """Give up this step's refresh for want of memory; any other error passes."""
        try:
            yield
        except RuntimeError as error:
            self._pending = None
            if not ran_out_of_memory(error):
                raise
            self._given_up = True
            self.skipped += 1
            if self.skipped == 1:
                warnings.warn(
                    f"{type(self).__name__} ran out of memory and skips this refresh, and any "
                    f"later one that does; `skipped` counts them, the step goes on ({error}). Gate "
                    "needs no memory, and a closure over part of the batch less",
                    stacklevel=4,
                )

    def _notice_change(self, loss: Tensor) -> None:
        """Start anew when other operators than at the last refresh stand around the weights."""
        now = surroundings(loss, self.twins)
        if now is None:  # a loss of something else, a teacher's say
            return
        if self._surroundings not in (None, now):
            warnings.warn(
                f"the model has changed since {type(self).__name__} last measured: other operators "
                "use the paired weights. What was measured before is forgotten",
                stacklevel=2,
            )
            self._changed = True
        self._surroundings = now

    def _agree(self, group: dist.ProcessGroup) -> None:
        """The mean of what all processes measured; none of it if one of them could not."""
        mine = torch.zeros_like(self.q) if self._pending is None else self._pending
        flags = mine.new_tensor([self._pending is None, self._changed])
        mean, flags = mean_over(group, [mine, flags])
        gave_up, self._changed = flags.bool().tolist()  # waits for the device, on these steps only
        self._pending = None if gave_up else mean

    def _take(self, new: Tensor) -> None:
        here = torch.zeros(new.shape[1], dtype=torch.bool, device=new.device)
        slices = self.twins.layout.slices()
        for l in self.layers:
            here[slices[l]] = True
        finite = new.isfinite() & here
        self.taken = self.taken + finite
        weight = (1 - self.average) / (1 - self.average ** self.taken.double())
        averaged = (1 - weight) * self.q + weight * new
        self.q = torch.where(finite, averaged, self.q)
        self.dropped = self.dropped + (here & ~finite).sum()
        assert self.part is not None
        self.measured.add(self.part)

    def state_dict(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "draws": self.draws,
            "skipped": self.skipped,
            "measured": sorted(self.measured),
            "q": self.q.clone(),
            "taken": self.taken.clone(),
            "dropped": self.dropped.clone(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.step, self.draws, self.skipped = (state[k] for k in ("step", "draws", "skipped"))
        self.measured = set(state["measured"])
        device = self.twins.device
        self.q, self.taken, self.dropped = (
            state[k].to(device, copy=True) for k in ("q", "taken", "dropped")
        )
        self._pending, self._given_up, self._changed = None, False, False
        self._surroundings = None


def ran_out_of_memory(error: RuntimeError) -> bool:
    """Whether this is an allocation that failed; the CPU's has no type of its own."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def check_probes(probes: int) -> int:
    if probes < 1:
        raise ValueError(f"probes={probes}; take at least one")
    return probes
