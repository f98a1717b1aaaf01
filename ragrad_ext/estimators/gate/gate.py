"""The gate: Eq. 1 with a row really removed up to one point, and first order from there."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch import distributed as dist

from ...backends.contract import RowSums
from ...rows.bucket import Bucket
from ..effectiveness import Closure, Effectiveness
from ..processes import mean_over, several
from .graph import consumers
from .hooks import effect, hook
from .report import counts, table
from .search import ABSENT, HIDDEN, Place, find_places


class Key(NamedTuple):
    """Whose sums: modality, pair, and the kind of place they belong to."""

    m: int
    l: int
    kind: str


NOT_RUN = "its hook did not run: ragrad.backward(loss) in place of loss.backward() places it"


class Gate(Effectiveness):
    """``E = sum (t' - t) dL/dt``: t is a tensor behind the row, t' what it is without the row.

    At the row's own output that is ``-sum_j g_j theta_j``. The further behind it t lies, the more
    of the removal is exact. Where it lies was measured against Eq. 1 (`benchmarks.gates`):

    - Behind a norm with statistics of the channel (BatchNorm, InstanceNorm, SyncBatchNorm in
      training mode), an activation between or not. The loss there is blind to a row's scale, and
      without the row only the norm's bias is left: ``E = -gamma_i dL/dgamma_i``, read off a
      gradient that the step has anyway. A hook finds the same where the gain is frozen, absent or
      shared.
    - Behind a GroupNorm or a LayerNorm over the channels, and the activation right after it: hooks.
    - Behind the first activation, if a bias or a frozen BatchNorm lies before it: a hook.
    - Else at the row's own output: where that is split, summed or goes several ways before any of
      these (q, k and v of attention; a residual sum behind a frozen BatchNorm), and where no graph
      was seen.

    All this is read off the autograd graph of an ordinary forward, by dataflow: the first
    ``before_backward`` does it, or call ``trace`` on any output. A hook sits on the graph of one
    backward and goes with it; it needs ``before_backward`` of every micro-batch, as
    ``ragrad.backward(loss)`` does. `attach` shows no loss, and a model compiled by
    ``torch.compile`` no graph (trace one forward of the plain model first): there rows that need a
    hook keep ``-g.theta``. ``report()`` says how many rows have which gate, and why.

    Args:
        hooks: False reads only gradients that the step has anyway. Hooks read the activations they
            sit on, and their gradients, once more: a few percent of a step on models that need
            them, more where every layer has a GroupNorm; nothing behind plain BatchNorms.
        group: the processes that average gradients (DDP); sums of hooks are averaged over them.
            Several processes without it use no hooks, so that replicas cannot drift apart.

    Attributes:
        places: modality first, where the gate of each pair lies; None before the trace.
    """

    def __init__(self, *, hooks: bool = True, group: dist.ProcessGroup | None = None) -> None:
        self.hooks, self.group = hooks, group
        self.places: list[list[Place]] | None = None
        self._sums: dict[Key, Tensor] = {}  # of this step's micro-batches
        self._missing: set[tuple[int, int]] = set()  # pairs whose place could not be read
        self._rows: tuple[tuple[tuple[int, int], ...], Tensor] | None = None  # of the gains

    @property
    def gains(self) -> list[list[Tensor | None]] | None:
        """Modality first, for each pair the gain that E is read off, or None; None untraced."""
        if self.places is None:
            return None
        return [[place.gain for place in side] for side in self.places]

    def before_backward(self, loss: Tensor, closure: Closure | None = None) -> None:
        if self.places is not None and not any(p.hooked for side in self.places for p in side):
            return
        found = self._trace([loss])
        if found is None or self.refuses_hooks():
            return
        scale: list[Tensor | None] = [None]

        def see_scale(grads: tuple[Tensor | None, ...]) -> None:
            scale[:] = grads  # a GradScaler's; the gradients will be rid of it

        loss.grad_fn.register_prehook(see_scale)  # type: ignore[union-attr]
        for m, side in enumerate(found):
            for l, place in enumerate(side):
                if place.hooked:
                    add = partial(self._add, Key(m, l, place.kind), scale)
                    hook(place, self.twins.layout.channels[l], add)

    def _add(self, key: Key, scale: list[Tensor | None], value: Tensor) -> None:
        if scale[0] is not None:
            value = value / scale[0]
        self._sums[key] = self._sums[key] + value if key in self._sums else value

    def trace(self, *outputs: Tensor) -> None:
        """Find the places in the graph behind ``outputs``, which must not be freed yet.

        A graph that holds none of the paired weights, a teacher's say, changes nothing.
        """
        self._trace(outputs)

    def _trace(self, outputs: Iterable[Tensor]) -> list[list[Place]] | None:
        """The places in this graph with their nodes; None if it holds no paired weight."""
        users = consumers(outputs)
        found = find_places(users, self.twins)
        if all(place.why == ABSENT for side in found for place in side):
            return None
        if self.places is None and any(n.name().startswith("CompiledFunction") for n in users):
            warnings.warn(
                "a compiled part of the model hides its normalisations from Gate; rows there keep "
                "-g.theta, which is noise behind a BatchNorm. Show it the plain model once: "
                "ragrad.repa.effectiveness.trace(model(batch)), before torch.compile",
                stacklevel=3,
            )
        before = self.places or found
        self.places = [
            [old if new.why in (ABSENT, HIDDEN) else new.without_graph() for old, new in both]
            for both in (zip(*sides, strict=True) for sides in zip(before, found, strict=True))
        ]
        return found

    def refuses_hooks(self) -> str | None:
        """Why no hooks are used, if so."""
        if not self.hooks:
            return "needs a hook, and hooks=False"
        if several() and self.group is None:
            return "needs a hook, for which several processes need Gate(group=...)"
        return None

    def reads_weight(self, m: int, l: int) -> bool:
        place = self._readable(m, l)
        return place is None or place.kind in ("activation", "row")

    def scores(self, bucket: Bucket, sums: RowSums) -> Tensor:
        self._average_over_processes()
        score = -sums.dot
        self._missing = set()
        gains: dict[tuple[int, int], Tensor] = {}
        for m in (0, 1):
            for l, rows in enumerate(self.twins.layout.slices()):
                place = self._readable(m, l)
                if place is None:
                    self._missing.add((m, l))
                elif place.gain is not None:
                    gains[m, l] = place.gain
                elif place.hooked:
                    found = self._sums[Key(m, l, place.kind)].to(score.device)
                    score[m, rows] = effect(place, found, sums.dot[m, rows])
        self._sums = {}
        if gains:  # all at once: a layer has too few for an operator of its own
            gamma = torch.cat([gain.detach().reshape(-1) for gain in gains.values()])
            slope = torch.cat([gain.grad.reshape(-1) for gain in gains.values()])  # type: ignore[union-attr]
            score.view(-1)[self._rows_of(tuple(gains), score)] = -(gamma.double() * slope.double())
        return score

    def _rows_of(self, pairs: tuple[tuple[int, int], ...], score: Tensor) -> Tensor:
        """Where the rows of pairs (m, l) lie in the flat ``score``; made once, kept."""
        if self._rows is None or self._rows[0] != pairs or self._rows[1].device != score.device:
            slices, rows = self.twins.layout.slices(), self.twins.layout.rows
            parts = [torch.arange(slices[l].start, slices[l].stop) + m * rows for m, l in pairs]
            self._rows = pairs, torch.cat(parts).to(score.device)
        return self._rows[1]

    def _readable(self, m: int, l: int) -> Place | None:
        """Where E of this step can be read; None: not traced, or without a gradient or sum."""
        if self.places is None:
            return None
        place = self.places[m][l]
        if place.hooked:
            return place if Key(m, l, place.kind) in self._sums else None
        return None if place.gain is not None and place.gain.grad is None else place

    def _average_over_processes(self) -> None:
        if self.group is None or not self._sums:
            return
        keys = sorted(self._sums)  # the same order everywhere
        means = mean_over(self.group, [self._sums[key] for key in keys])
        self._sums = dict(zip(keys, means, strict=True))

    def summary(self) -> str:
        """In one line, how many rows have which kind of gate."""
        return f"{type(self).__name__}: {counts(self._in_use(), self.twins)}"

    def report(self, limit: int | None = 5) -> None:
        """Print how many rows have which gate, and why; ``limit`` pairs a group (None: all)."""
        print(table(self._in_use(), self.twins, limit))

    def _in_use(self) -> list[list[Place]]:
        """The places, and the row's own output wherever the last step could not read there."""

        def now(m: int, l: int, place: Place) -> Place:
            if place.hooked and (why := self.refuses_hooks()):
                return Place("row", why)
            if (m, l) in self._missing and place.kind != "row":
                return Place("row", NOT_RUN if place.hooked else "the gain has no gradient")
            return place

        if self.places is None:
            return [[Place("row", "no graph seen yet")] * len(side) for side in self.twins.weights]
        return [[now(m, l, p) for l, p in enumerate(side)] for m, side in enumerate(self.places)]
