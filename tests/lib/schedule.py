"""A model of one launch: blocks, tickets, flags, and what each block may know of the others' work.

Steps are those between which other blocks can act: atomic operations, and the plain work between
two of them. What a block wrote is not simply there for others: `Block.knows` holds the events that
happen before a block's next step (by the rules of release and acquire, not by the clock), and a
step that needs other events than these is a data race. A protocol without races behaves on a
device's weak memory as it does here, so that looking at every interleaving is enough.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Literal, NamedTuple

Kind = Literal["gram", "moments", "decide", "apply"]
Order = Literal["relaxed", "acquire", "release", "acq_rel"]  # of memory, at an atomic operation


class Ticket(NamedTuple):
    """What a block does with its turn.

    "gram": sum the rows of one unit; the last one to arrive decides the layer.
    "moments": of one unit of a group of rows; the last one to arrive pools the group.
    "decide": a layer, once its group, number `unit`, is pooled by this launch or an earlier one.
    "apply": rewrite, once the layer is decided.

    A group of rows is here one more layer, after those that are corrected: its units arrive, the
    last one decides it (pools it, Eq. 3), and others wait for that.
    """

    kind: Kind
    layer: int
    unit: int


class Violation(Exception):
    """A schedule that the protocol must exclude."""


@dataclass(frozen=True)
class Protocol:
    """The rules that blocks follow. What is not the default is a mistake one could make."""

    tickets: Literal["as they come", "every grid-th"] = "as they come"
    arrive: Order | Literal["not atomic"] = "acq_rel"  # not atomic: a load, then a store
    decides: int = 0  # the block before which so many others are still to arrive decides
    publish: Order = "release"
    publishes: Literal["after deciding", "before deciding"] = "after deciding"
    wait: Order | Literal["none"] = "acquire"
    wait_for_group: Order | Literal["none", "of the first group"] = "acquire"
    pools: int = 0  # the block before which so many others are still to arrive pools its group
    leave: Order = "acq_rel"
    resets: Literal["last to leave", "first to leave"] = "last to leave"
    forgets: Literal["", "ticket", "left", "arrived", "ready"] = ""  # a counter that is not reset


@dataclass
class Block:
    """What a block is at; `number` is of use to "every grid-th" alone."""

    at: str = "not started"
    ticket: int = -1
    knows: int = 0  # a set of events, one bit each
    seen: int = 0  # what an arrival that is not atomic loaded
    number: int = 0

    def key(self) -> tuple[object, ...]:
        return self.at, self.ticket, self.knows, self.seen, self.number


@dataclass
class Counter:
    """An atomic variable, and the events that a block gets to know by an acquire of it."""

    value: int = 0
    carries: int = 0

    def add(self, block: Block, order: str) -> int:
        if order in ("release", "acq_rel"):
            self.carries |= block.knows
        if order in ("acquire", "acq_rel"):
            block.knows |= self.carries
        self.value += 1
        return self.value - 1


class Work(NamedTuple):
    """Events as bits: every ticket's own, a layer's sums, that it is decided, and the leaves'."""

    of: dict[Ticket, int]
    sums: list[int]  # of layer l: all of its gram or moments tickets
    decided: list[int]
    left: list[int]  # of the first, second, ... block to leave


def number(queue: Sequence[Ticket], layers: int, grid: int) -> Work:
    bits = [1 << n for n in range(len(queue) + layers + grid)]
    of = dict(zip(queue, bits, strict=False))
    sums = [0] * layers
    for ticket, bit in of.items():
        if ticket.kind in ("gram", "moments"):
            sums[ticket.layer] |= bit
    return Work(of, sums, bits[len(queue) :][:layers], bits[len(queue) + layers :])


@dataclass
class Launch:
    """One launch of ``grid`` blocks on a queue, of which ``resident`` run at a time.

    A block that has not started stays out until another has ended.

    Args:
        units: what the device is told of each layer: how many blocks arrive before it is decided.
        groups: how many of these, the last ones, are groups of rows.
    """

    queue: Sequence[Ticket]
    units: Sequence[int]
    grid: int
    resident: int
    protocol: Protocol = field(default_factory=Protocol)
    groups: int = 0

    def __post_init__(self) -> None:
        layers = len(self.units)
        self.work = number(self.queue, layers, self.grid)
        self.blocks = [Block() for _ in range(self.grid)]
        if self.protocol.tickets == "every grid-th":
            self.blocks = [Block(ticket=b - self.grid, number=b) for b in range(self.grid)]
        self.ticket, self.left = Counter(), Counter()
        self.arrived = [Counter() for _ in range(layers)]
        self.ready = [Counter() for _ in range(layers)]
        self.done = 0

    def copy(self) -> Launch:
        new = Launch.__new__(Launch)
        new.__dict__ = dict(self.__dict__)
        new.blocks = [replace(b) for b in self.blocks]
        new.ticket, new.left = replace(self.ticket), replace(self.left)
        new.arrived = [replace(c) for c in self.arrived]
        new.ready = [replace(c) for c in self.ready]
        return new

    def key(self) -> tuple[object, ...]:
        """Equal for states that differ by the names of their blocks only."""
        counters = [self.ticket, self.left, *self.arrived, *self.ready]
        values = tuple((c.value, c.carries) for c in counters)
        return values, self.done, tuple(sorted(b.key() for b in self.blocks))

    def runnable(self) -> list[int]:
        """Blocks that can take a step: waiting ones cannot, and one that has yet to start is
        as good as any other."""
        running = sum(b.at not in ("not started", "ended") for b in self.blocks)
        able, started = [], running >= self.resident
        for n, block in enumerate(self.blocks):
            if block.at == "not started":
                in_turn = self.protocol.tickets == "every grid-th"
                if not started:
                    able.append(n)
                    started = not in_turn or running + 1 >= self.resident
                continue
            waits = block.at == "wait" and not self.ready[self._awaited(block)].value
            if block.at != "ended" and not waits:
                able.append(n)
        return able

    def step(self, n: int) -> None:
        block = self.blocks[n]
        getattr(self, "_" + block.at.replace(" ", "_"))(block)

    def check_end(self) -> None:
        """Called where no block can take a step."""
        if stuck := [b.ticket for b in self.blocks if b.at != "ended"]:
            raise Violation(f"deadlock: blocks with tickets {stuck} wait for ever")
        if missing := [t for t, bit in self.work.of.items() if not self.done & bit]:
            raise Violation(f"never done: {missing}")
        for name in ("ticket", "left", "arrived", "ready"):
            counters = getattr(self, name)
            if any(c.value for c in (counters if isinstance(counters, list) else [counters])):
                raise Violation(f"{name} is not 0 for the next launch")

    def _awaited(self, block: Block) -> int:
        """The layer or group whose flag the block waits for."""
        ticket = self.queue[block.ticket]
        if ticket.kind != "decide":
            return ticket.layer
        group = 0 if self.protocol.wait_for_group == "of the first group" else ticket.unit
        return len(self.units) - self.groups + group

    def _not_started(self, block: Block) -> None:
        self._take(block)

    def _take(self, block: Block) -> None:
        if self.protocol.tickets == "every grid-th":
            block.ticket += self.grid
        else:
            block.ticket = self.ticket.add(block, "relaxed")
        if block.ticket >= len(self.queue):
            block.at = "leave"
            block.ticket = -1
        else:
            block.at = self.queue[block.ticket].kind
            waits = self.groups > 0 and self.protocol.wait_for_group != "none"
            if (block.at == "apply" and self.protocol.wait != "none") or (
                block.at == "decide" and waits
            ):
                block.at = "wait"
            elif block.at == "decide":
                self._begin_to_decide(block)

    def _begin_to_decide(self, block: Block) -> None:
        first = self.protocol.publishes == "before deciding"
        block.at = "publish" if first else "decide"

    def _gram(self, block: Block) -> None:
        self._do(block)
        block.at = "arrive"

    _moments = _gram

    def _arrive(self, block: Block) -> None:
        layer = self.queue[block.ticket].layer
        if self.protocol.arrive == "not atomic":
            block.seen, block.at = self.arrived[layer].value, "arrive again"
            return
        self._count(block, self.arrived[layer].add(block, self.protocol.arrive))

    def _arrive_again(self, block: Block) -> None:
        counter = self.arrived[self.queue[block.ticket].layer]
        before = counter.value
        counter.add(block, "acq_rel")
        counter.value = block.seen + 1
        before, block.seen = block.seen, 0
        self._count(block, before)

    def _count(self, block: Block, before: int) -> None:
        kind, layer, _ = self.queue[block.ticket]
        early = self.protocol.pools if kind == "moments" else self.protocol.decides
        block.at = "take"
        if before == self.units[layer] - 1 - early:
            self._begin_to_decide(block)

    def _decide(self, block: Block) -> None:
        kind, layer, unit = self.queue[block.ticket]
        if self.work.sums[layer] & ~block.knows:
            what = "group is pooled" if kind == "moments" else f"layer {layer} is decided"
            raise Violation(f"{what} without the sums of all of its units")
        if kind == "decide" and self.groups:
            group = len(self.units) - self.groups + unit
            if (self.work.decided[group] | self.work.sums[group]) & ~block.knows:
                raise Violation(f"layer {layer} is decided by a group that is not pooled")
        self._mark(block, self.work.decided[layer], f"layer {layer} is decided twice")
        if kind == "decide":
            self._do(block)
        block.at = "take" if self.ready[layer].value else "publish"

    def _publish(self, block: Block) -> None:
        layer = self.queue[block.ticket].layer
        self.ready[layer].add(block, self.protocol.publish)
        block.at = "take" if self.done & self.work.decided[layer] else "decide"

    def _wait(self, block: Block) -> None:
        """Taken only once the flag is up: polling changes nothing."""
        for_group = self.queue[block.ticket].kind == "decide"
        if (self.protocol.wait_for_group if for_group else self.protocol.wait) != "relaxed":
            block.knows |= self.ready[self._awaited(block)].carries
        block.at = "apply"
        if for_group:
            self._begin_to_decide(block)

    def _apply(self, block: Block) -> None:
        layer = self.queue[block.ticket].layer
        if self.work.decided[layer] & ~block.knows:
            raise Violation(f"layer {layer} is rewritten before it is decided")
        if self.work.sums[layer] & ~block.knows:
            raise Violation(f"rows of layer {layer} are rewritten while they are read")
        self._do(block)
        block.at = "take"

    def _leave(self, block: Block) -> None:
        # every earlier touch of a counter by this block happens before this event
        block.knows |= self.work.left[self.left.value]
        before = self.left.add(block, self.protocol.leave)
        last = before == (0 if self.protocol.resets == "first to leave" else self.grid - 1)
        block.at = "reset" if last else "ended"
        if not last:
            block.knows = 0  # nobody asks any more, and states that differ by this are the same

    def _reset(self, block: Block) -> None:
        if sum(self.work.left) & ~block.knows:
            raise Violation("a counter is reset while another block may still touch it")
        names = {"ticket": [self.ticket], "left": [self.left], "arrived": self.arrived,
                 "ready": self.ready}  # fmt: skip
        for name, counters in names.items():
            for counter in counters if name != self.protocol.forgets else ():
                counter.value = counter.carries = 0
        block.at, block.knows = "ended", 0

    def _do(self, block: Block) -> None:
        ticket = self.queue[block.ticket]
        self._mark(block, self.work.of[ticket], f"{ticket} is done twice")

    def _mark(self, block: Block, event: int, twice: str) -> None:
        if self.done & event:
            raise Violation(twice)
        self.done |= event
        block.knows |= event


def explore(launch: Launch) -> int:
    """Every interleaving; the number of states that there are.

    Raises:
        Violation: for the first schedule found that the protocol must exclude.
    """
    seen = {launch.key()}
    todo = [launch]
    while todo:
        state = todo.pop()
        able = state.runnable()
        if not able:
            state.check_end()
        for n in able:
            new = state.copy()
            new.step(n)
            key = new.key()
            if key not in seen:
                seen.add(key)
                todo.append(new)
    return len(seen)


def run(launch: Launch, seed: int) -> None:
    """One interleaving. Blocks differ in speed, some by far: ties are rare on a device."""
    draw = random.Random(seed)
    speeds = [draw.choice((1, 1, 1, 10, 1000)) for _ in range(launch.grid)]
    while able := launch.runnable():
        total = list(accumulate(speeds[n] for n in able))
        launch.step(draw.choices(able, cum_weights=total)[0])
    launch.check_end()
