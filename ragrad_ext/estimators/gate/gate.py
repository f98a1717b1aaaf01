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
from .hooks import LossScale
from .places import AtGain, AtRow, Hooked, Place
from .report import counts, table
from .search import ABSENT, HIDDEN, Found, find_places


class Key(NamedTuple):
    """Whose sums: modality, pair, and the kind of place that they belong to."""

    m: int
    l: int
    kind: str


NOT_RUN = "its hook did not run; call ragrad.backward(loss) in place of loss.backward()"


class Gate(Effectiveness):
    """``E = sum (t' - t) dL/dt``: t is a later activation, t' its value without the row.

    If t is the row's own output, that is ``-sum_j g_j theta_j``. The later t is, the fewer
    approximations remain. How late it may be was measured against Eq. 1 (`benchmarks.gates`):

    - After a norm with statistics of the channel (BatchNorm, InstanceNorm, SyncBatchNorm in
      training mode), with or without an activation in between. The loss does not depend on the
      scale of such a row, and without the row only the norm's bias is left. So
      ``E = -gamma_i dL/dgamma_i``, read off a gradient that the step computes anyway. A hook finds
      the same where the gain is frozen, absent or shared.
    - After a GroupNorm or a LayerNorm over the channels, and the activation right after it: hooks.
    - After the first activation, if a bias or a frozen BatchNorm comes before it: a hook.
    - Otherwise at the row's own output: where it is split, summed or used several times before any
      of these (q, k and v of attention; a residual sum after a frozen BatchNorm), and where no
      graph was seen.

    All this is read off the autograd graph of an ordinary forward: the first ``before_backward``
    does it, or a call of ``trace`` on any output. A hook belongs to the graph of one backward, so
    hooks need ``before_backward`` of every micro-batch, as in ``ragrad.backward(loss)``. `attach`
    shows no loss, and a model compiled by ``torch.compile`` shows no graph (trace one forward of
    the plain model first). There rows that need a hook keep ``-g.theta``. ``report()`` says how
    many rows have which gate, and why.

    Args:
        hooks: False uses only gradients that the step computes anyway. Hooks read the activations
            where they are, and their gradients, once more. That costs a few percent of a step on
            models that need them, more where every layer has a GroupNorm, nothing with plain
            BatchNorms.
        group: the processes that average gradients (DDP). The sums of hooks are averaged over them.
            Several processes without a group use no hooks, so that replicas cannot drift apart.

    Attributes:
        places: modality first, the place of each pair's gate; None before the trace.
    """

    def __init__(self, *, hooks: bool = True, group: dist.ProcessGroup | None = None) -> None:
        self.hooks, self.group = hooks, group
        self.places: list[list[Place]] | None = None
        self._sums: dict[Key, Tensor] = {}  # of this step's micro-batches
        self._missing: set[tuple[int, int]] = set()  # pairs whose place could not be read
        self._rows: tuple[tuple[tuple[int, int], ...], Tensor] | None = None  # of the gains

    @property
    def needs_trace(self) -> bool:
        return self.places is None

    @property
    def gains(self) -> list[list[Tensor | None]] | None:
        """Modality first, for each pair the gain that E is read off, or None; None untraced."""
        if self.places is None:
            return None
        return [[p.gain if isinstance(p, AtGain) else None for p in side] for side in self.places]

    def before_backward(self, loss: Tensor, closure: Closure | None = None) -> None:
        if self.places is not None and not any(
            isinstance(place, Hooked) for side in self.places for place in side
        ):
            return
        # The graph of each backward is a new one, so it is searched for the nodes to hook.
        found = self._trace([loss])
        if found is None or self.refuses_hooks():
            return
        scale = LossScale(loss)
        for m, side in enumerate(found):
            for l, (place, hook) in enumerate(side):
                if hook is not None:
                    hook(partial(self._add, Key(m, l, place.kind), scale))

    def _add(self, key: Key, scale: LossScale, value: Tensor) -> None:
        value = scale.removed(value)
        self._sums[key] = self._sums[key] + value if key in self._sums else value

    def trace(self, *outputs: Tensor) -> None:
        """Find the places in the graph that leads to ``outputs``, which must not be freed yet.

        A graph without any of the paired weights, a teacher's for example, changes nothing.
        """
        self._trace(outputs)

    def _trace(self, outputs: Iterable[Tensor]) -> list[list[Found]] | None:
        """The places in this graph with their hooks; None if it holds no paired weight."""
        users = consumers(outputs)
        found = find_places(users, self.twins)
        if all(place.why == ABSENT for side in found for place, _ in side):
            return None
        if self.places is None and any(n.name().startswith("CompiledFunction") for n in users):
            warnings.warn(
                "a compiled part of the model hides its normalisations from Gate. Its rows keep "
                "-g.theta, which is meaningless before a BatchNorm. Show Gate the plain model "
                "once, before torch.compile: ragrad.repa.effectiveness.trace(model(batch))",
                stacklevel=3,
            )
        new = [[place for place, _ in side] for side in found]
        self.places = [
            [a if b.why in (ABSENT, HIDDEN) else b for a, b in zip(*sides, strict=True)]
            for sides in zip(self.places or new, new, strict=True)
        ]
        return found

    def refuses_hooks(self) -> str | None:
        """Why no hooks are used; None if they are."""
        if not self.hooks:
            return "needs a hook, and hooks=False"
        if several() and self.group is None:
            return "needs a hook, for which several processes need Gate(group=...)"
        return None

    def reads_weight(self, m: int, l: int) -> bool:
        place = self._readable(m, l)
        return place is None or place.reads_dot

    def effect(self, bucket: Bucket, sums: RowSums) -> Tensor:
        self._average_over_processes()
        effect = -sums.g_theta
        self._missing = set()
        gains: dict[tuple[int, int], Tensor] = {}
        for m in (0, 1):
            for l, rows in enumerate(self.twins.layout.slices()):
                place = self._readable(m, l)
                if place is None:
                    self._missing.add((m, l))
                elif isinstance(place, AtGain):
                    gains[m, l] = place.gain
                elif isinstance(place, Hooked):
                    found = self._sums[Key(m, l, place.kind)].to(effect.device)
                    effect[m, rows] = place.effect(found, sums.g_theta[m, rows])
        self._sums = {}
        if gains:  # all at once: a layer has too few for an operator of its own
            gamma = torch.cat([gain.detach().reshape(-1) for gain in gains.values()])
            slope = torch.cat([gain.grad.reshape(-1) for gain in gains.values()])  # type: ignore[union-attr]
            e = -(gamma.double() * slope.double())
            effect.view(-1)[self._rows_of(tuple(gains), effect)] = e
        return effect

    def _rows_of(self, pairs: tuple[tuple[int, int], ...], effect: Tensor) -> Tensor:
        """The indices of the rows of pairs (m, l) in the flat ``effect``; computed once, kept."""
        if self._rows is None or self._rows[0] != pairs or self._rows[1].device != effect.device:
            slices, rows = self.twins.layout.slices(), self.twins.layout.rows
            parts = [torch.arange(slices[l].start, slices[l].stop) + m * rows for m, l in pairs]
            self._rows = pairs, torch.cat(parts).to(effect.device)
        return self._rows[1]

    def _readable(self, m: int, l: int) -> Place | None:
        """Where E of this step can be read; None: not traced, or without a gradient or sum."""
        if self.places is None:
            return None
        place = self.places[m][l]
        if isinstance(place, Hooked):
            return place if Key(m, l, place.kind) in self._sums else None
        return None if isinstance(place, AtGain) and place.gain.grad is None else place

    def _average_over_processes(self) -> None:
        if self.group is None or not self._sums:
            return
        keys = sorted(self._sums)  # the same order everywhere
        means = mean_over(self.group, [self._sums[key] for key in keys])
        self._sums = dict(zip(keys, means, strict=True))

    def summary(self) -> str:
        """One line that says how many rows have which kind of gate."""
        return f"{type(self).__name__}: {counts(self._in_use(), self.twins)}"

    def report(self, limit: int | None = 5) -> None:
        """Print how many rows have which gate, and why; ``limit`` pairs a group (None: all)."""
        print(table(self._in_use(), self.twins, limit))

    def _in_use(self) -> list[list[Place]]:
        """The places; the row's own output where the last step could not read another."""

        def now(m: int, l: int, place: Place) -> Place:
            if isinstance(place, Hooked) and (why := self.refuses_hooks()):
                return AtRow(why)
            if (m, l) in self._missing and not isinstance(place, AtRow):
                return AtRow(NOT_RUN if isinstance(place, Hooked) else "the gain has no gradient")
            return place

        if self.places is None:
            return [[AtRow("no graph seen yet")] * len(side) for side in self.twins.weights]
        return [[now(m, l, p) for l, p in enumerate(side)] for m, side in enumerate(self.places)]
