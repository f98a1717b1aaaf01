"""Blocks of one launch, in any number and any order: none waits for ever, nothing is lost.

The queues are those that the backend makes; the blocks are the model of `schedule`.
"""

from __future__ import annotations

from dataclasses import replace
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ragrad_ext.backends.triton import plan, queues

from ...lib.schedule import Kind, Launch, Protocol, Ticket, Violation, explore, run

KINDS: dict[int, Kind] = {
    queues.GRAM: "gram",
    queues.MOMENTS: "moments",
    queues.DECIDE: "decide",
    queues.APPLY: "apply",
}
# Layers as (units, tickets of the rewrite).
SMALL = [[(1, 1)], [(2, 2)], [(3, 1)], [(2, 1), (1, 2)], [(1, 1), (1, 1), (1, 1)]]


def layers(*sizes: tuple[int, int]) -> list[plan.Cut]:
    """Layers cut into so many units and tickets, whatever is in them."""
    return [plan.Cut(2, 1, 1, 1, units, applies) for units, applies in sizes]


def tickets(queue: np.ndarray, layers: int = 0) -> list[Ticket]:
    """As the model has them: groups of rows are counted after the ``layers``."""
    found = [Ticket(KINDS[w % queues.KINDS], w // queues.KINDS, u) for w, u in queue.tolist()]
    return [t._replace(layer=layers + t.layer) if t.kind == "moments" else t for t in found]


def launch(cuts: list[plan.Cut], grid: int, resident: int) -> Launch:
    return Launch(tickets(queues.queue(cuts, grid)), [c.units for c in cuts], grid, resident)


def rated_launch(
    cuts: list[plan.Cut], rated: queues.Rated, grid: int, resident: int, apart: int | None = None
) -> Launch:
    """The queue has every APPLY about ``apart`` tickets later; default the grid, as in a step."""
    queue = queues.queue(cuts, grid if apart is None else apart, rated)
    units = [c.units for c in cuts] + list(rated.units)
    return Launch(tickets(queue, len(cuts)), units, grid, resident, groups=len(rated.units))


@pytest.mark.parametrize("sizes", SMALL, ids=str)
@pytest.mark.parametrize(("grid", "resident"), [(1, 1), (2, 1), (2, 2), (3, 2), (3, 3), (4, 2)])
def test_every_interleaving_of_a_small_launch(
    sizes: list[tuple[int, int]], grid: int, resident: int
) -> None:
    states = explore(launch(layers(*sizes), grid, resident))
    tickets = sum(units + applies for units, applies in sizes)
    assert states > 2 * tickets


# Units of every group of rows, and the group of every layer; groups may be skipped pairs, or empty.
RATED = [
    queues.Rated([0], [1]),
    queues.Rated([0, 0], [2]),
    queues.Rated([0, 1], [1, 2]),
    queues.Rated([2, 0], [1, 0, 1]),
]


@pytest.mark.parametrize("rated", RATED, ids=str)
@pytest.mark.parametrize(("grid", "resident"), [(1, 1), (2, 1), (2, 2), (3, 2), (3, 3)])
def test_every_interleaving_of_a_launch_that_rates(
    rated: queues.Rated, grid: int, resident: int
) -> None:
    cuts = layers((1, 1), (1, 1))[: len(rated.groups)]
    for apart in (0, grid):
        explore(rated_launch(cuts, rated, grid, resident, apart))


def test_every_interleaving_of_a_launch_after_one_that_rated() -> None:
    cuts = layers((3, 2), (1, 1))
    launch = rated_launch(cuts, queues.Rated([0, 1]), 3, 3)
    assert {t.kind for t in launch.queue} == {"decide", "apply"}
    explore(launch)


def test_every_interleaving_of_an_observation() -> None:
    cuts = layers((3, 0), (2, 0))
    queue = [Ticket("gram", l, u) for l, u in queues.units(cuts).tolist()]
    explore(Launch(queue, [c.units for c in cuts], 3, 3))


@pytest.mark.parametrize("seed", range(60))
def test_random_interleavings_of_larger_launches(seed: int) -> None:
    draw = np.random.default_rng(seed)
    sizes = [(int(u), int(b)) for u, b in draw.integers(1, 9, (draw.integers(2, 12), 2))]
    grid = int(draw.integers(1, 30))
    resident = int(draw.integers(1, grid + 1))
    run(launch(layers(*sizes), grid, resident), seed)


@pytest.mark.parametrize("seed", range(40))
def test_random_interleavings_of_larger_launches_that_rate(seed: int) -> None:
    draw = np.random.default_rng(seed)
    applies = draw.integers(1, 9, draw.integers(2, 12)).tolist()
    units = draw.integers(1, 7, draw.integers(1, 6)).tolist()
    rated = queues.Rated(draw.integers(0, len(units), len(applies)).tolist(), units)
    grid = int(draw.integers(1, 30))
    resident = int(draw.integers(1, grid + 1))
    run(rated_launch(layers(*((1, n) for n in applies)), rated, grid, resident), seed)


@given(st.lists(st.tuples(st.integers(1, 400), st.integers(1, 60)), min_size=1, max_size=30),
       st.integers(1, 600))  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_a_ticket_waits_for_lower_ones_alone_and_each_is_there_once(
    sizes: list[tuple[int, int]], grid: int
) -> None:
    cuts = layers(*sizes)
    queue = queues.queue(cuts, grid)
    assert len(queue) == len(np.unique(queue, axis=0)) == sum(map(sum, sizes))
    place = np.arange(len(queue))
    layer, kind = queue[:, 0] // queues.KINDS, queue[:, 0] % queues.KINDS
    for l, c in enumerate(cuts):
        of_gram = place[(layer == l) & (kind == queues.GRAM)]
        of_apply = place[(layer == l) & (kind == queues.APPLY)]
        assert queue[of_gram, 1].tolist() == list(range(c.units))
        assert queue[of_apply, 1].tolist() == list(range(c.applies))
        assert of_gram[-1] < of_apply[0]
        # a grid's worth of tickets in between: nobody waits unless the rest is rewriting only
        rest = kind[of_apply[0] :]
        assert of_apply[0] - of_gram[-1] > grid or (rest == queues.APPLY).all()


@given(st.lists(st.integers(1, 60), min_size=1, max_size=30),
       st.lists(st.integers(0, 50), min_size=1, max_size=10),
       st.integers(1, 600), st.randoms())  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_a_queue_that_rates_begins_with_it(
    applies: list[int], units: list[int], grid: int, draw: Random
) -> None:
    cuts = layers(*((1, n) for n in applies))
    groups = [draw.randrange(len(units)) for _ in cuts]
    queue = queues.queue(cuts, grid, queues.Rated(groups, units))
    n = sum(units)
    what = [(queues.KINDS * g + queues.MOMENTS, count) for g, count in enumerate(units)]
    assert queue[:n].tolist() == [[w, u] for w, count in what for u in range(count)]
    # the rest is the same as after a launch that has pooled the groups
    rest = queue[n:]
    assert np.array_equal(rest, queues.queue(cuts, grid, queues.Rated(groups)))
    layer, kind = rest[:, 0] // queues.KINDS, rest[:, 0] % queues.KINDS
    decides = kind == queues.DECIDE
    assert set(kind) == {queues.DECIDE, queues.APPLY}
    assert rest[decides, 1].tolist() == groups
    assert layer[decides].tolist() == list(range(len(cuts)))
    place = np.arange(len(rest))
    for l, c in enumerate(cuts):
        of_apply = place[~decides & (layer == l)]
        decided = place[decides][l]
        assert rest[of_apply, 1].tolist() == list(range(c.applies))
        assert decided < of_apply[0]
        tail = kind[of_apply[0] :]
        assert of_apply[0] - decided > grid or (tail == queues.APPLY).all()


@given(st.lists(st.integers(1, 400), min_size=1, max_size=30))
def test_units_are_all_there_once(counts: list[int]) -> None:
    found = queues.units(layers(*((n, 1) for n in counts)))
    assert found.dtype == np.int32
    assert found.tolist() == [[l, u] for l, n in enumerate(counts) for u in range(n)]


@given(st.integers(1, 5000), st.integers(1, 300_000), st.sampled_from([2, 4]),
       st.sampled_from([plan.Limits(), plan.Limits(1024, 2048, 16, 2)]))  # fmt: skip
@settings(max_examples=200, deadline=None)
def test_units_hold_every_element_once(
    channels: int, row_size: int, item_bytes: int, limits: plan.Limits
) -> None:
    c = plan.cut(channels, row_size, item_bytes, limits)
    assert (c.pieces - 1) * c.piece_size < row_size <= c.pieces * c.piece_size
    assert (c.units - 1) * c.unit_pieces < channels * c.pieces <= c.units * c.unit_pieces
    assert 1 <= c.applies <= c.units
    assert c.unit_pieces % c.height == 0
    if c.pieces > 1:
        assert c.piece_size * item_bytes % 16 == 0


MISTAKES = {
    "a block takes every grid-th ticket": (Protocol(tickets="every grid-th"), "deadlock"),
    "arrivals are not atomic": (Protocol(arrive="not atomic"), "deadlock"),
    "the last to arrive does not acquire": (Protocol(arrive="release"), "without the sums"),
    "arriving does not release": (Protocol(arrive="acquire"), "without the sums"),
    "one arrival too few": (Protocol(decides=1), "without the sums"),
    "one arrival too many": (Protocol(decides=-1), "deadlock"),
    "the flag does not release": (Protocol(publish="relaxed"), "before it is decided"),
    "the flag comes first": (Protocol(publishes="before deciding"), "before it is decided"),
    "waiting does not acquire": (Protocol(wait="relaxed"), "before it is decided"),
    "nobody waits": (Protocol(wait="none"), "before it is decided"),
    "a layer does not wait for its group": (Protocol(wait_for_group="none"), "by a group"),
    "waiting for a group does not acquire": (Protocol(wait_for_group="relaxed"), "by a group"),
    "a layer waits for another group": (
        Protocol(wait_for_group="of the first group"),
        "by a group",
    ),
    "a group is pooled too early": (Protocol(pools=1), "group is pooled without"),
    "a group is pooled too late": (Protocol(pools=-1), "deadlock"),
    "leaving does not release": (Protocol(leave="acquire"), "is reset while"),
    "the first to leave resets": (Protocol(resets="first to leave"), "is reset while"),
    "the ticket is not reset": (Protocol(forgets="ticket"), "ticket is not 0"),
    "arrivals are not reset": (Protocol(forgets="arrived"), "arrived is not 0"),
    "flags are not reset": (Protocol(forgets="ready"), "ready is not 0"),
    "the leavers are not reset": (Protocol(forgets="left"), "left is not 0"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_in_the_protocol_is_found(name: str) -> None:
    protocol, expected = MISTAKES[name]

    def explore_all() -> None:
        for resident in (1, 2, 3):
            right = launch(layers((2, 1), (1, 2)), 3, resident)
            explore(replace(right, protocol=protocol))
            rated = rated_launch(layers((1, 1), (1, 1)), queues.Rated([0, 1], [1, 2]), 3, resident)
            explore(replace(rated, protocol=protocol))

    with pytest.raises(Violation, match=expected):
        explore_all()


# Of the general ones, those that the groups' part of the protocol can make too.
BOTH = {
    "a block takes every grid-th ticket": "deadlock",
    "arrivals are not atomic": "deadlock",
    "the last to arrive does not acquire": "group is pooled without",
    "arriving does not release": "group is pooled without",
    "the flag does not release": "by a group that is not pooled",
    "the flag comes first": "by a group that is not pooled",
    "leaving does not release": "is reset while",
    "the first to leave resets": "is reset while",
    "arrivals are not reset": "arrived is not 0",
    "flags are not reset": "ready is not 0",
}


@pytest.mark.parametrize("name", BOTH)
def test_a_mistake_is_found_where_rows_are_rated(name: str) -> None:
    def explore_all() -> None:
        for resident in (1, 2, 3):
            right = rated_launch(layers((1, 1)), queues.Rated([0], [2]), 3, resident)
            explore(replace(right, protocol=MISTAKES[name][0]))

    with pytest.raises(Violation, match=BOTH[name]):
        explore_all()


@pytest.mark.parametrize("grid", [1, 2])
def test_a_layer_queued_before_its_group_is_found(grid: int) -> None:
    right = rated_launch(layers((1, 1), (1, 2)), queues.Rated([0, 1], [2, 1]), grid, grid)
    late = sorted(right.queue, key=lambda t: t.kind == "moments")
    with pytest.raises(Violation, match="deadlock"):
        explore(replace(right, queue=late))


@pytest.mark.parametrize("grid", [1, 2])
def test_a_rewrite_queued_too_early_is_found(grid: int) -> None:
    right = launch(layers((2, 1), (1, 2)), grid, grid)
    early = sorted(right.queue, key=lambda t: t.kind != "apply")
    with pytest.raises(Violation, match="deadlock"):
        explore(replace(right, queue=early))


def test_a_table_of_other_units_than_the_queue_is_found() -> None:
    for units in ([2, 2], [1, 1]):
        with pytest.raises(Violation):
            explore(replace(launch(layers((2, 1), (1, 2)), 2, 2), units=units))


def test_a_unit_queued_twice_is_found() -> None:
    right = launch(layers((2, 1)), 2, 2)
    with pytest.raises(Violation, match="twice"):
        explore(replace(right, queue=[*right.queue, right.queue[-1]]))


def run_often(wrong: Launch) -> None:
    for seed in range(50):
        run(replace(wrong), seed)


def test_random_interleavings_find_mistakes_too() -> None:
    """Not each one every time; that is what the exhaustive ones are for."""
    for name in ("nobody waits", "the first to leave resets", "waiting does not acquire"):
        protocol, expected = MISTAKES[name]
        right = launch(layers((5, 3), (4, 4), (6, 2)), 6, 4)
        wrong = replace(right, protocol=protocol)
        with pytest.raises(Violation, match=expected):
            run_often(wrong)
