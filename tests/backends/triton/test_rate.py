"""Rate and apply in the Triton backend, one launch after the observation: as the reference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from ragrad_ext.backends.reference import Reference
from ragrad_ext.backends.triton import queues
from ragrad_ext.backends.triton import verb as triton_verb
from ragrad_ext.backends.triton.backend import Triton
from ragrad_ext.backends.triton.tuning import Tuning
from ragrad_ext.rows.bucket import Bucket, Buckets
from ragrad_ext.rows.layout import Layout
from ragrad_ext.rows.sums import RowSums, Sensitivity
from ragrad_ext.rules import RaGradRule

from ...lib import cases
from ...lib.interleave import Schedule, interleaved
from ...lib.parity import Side, clone
from ...lib.triton_cases import CPU, SLOW

pytest.importorskip("triton")
pytestmark = pytest.mark.interpreted


def few_values(patch: pytest.MonkeyPatch, n: int) -> None:
    """Of a unit of MOMENTS."""
    from ragrad_ext.backends.triton import rate_and_apply

    patch.setattr(rate_and_apply, "VALUES", n)


@pytest.fixture(autouse=True)
def _small_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups of many units, for three blocks."""
    few_values(monkeypatch, 16)
    monkeypatch.setattr(triton_verb, "device_of", lambda device: (Tuning(correct_blocks=1), 3))


CHANNELS = (1, 40, 0, 7, 42)
ROWS = sum(CHANNELS)
SKIPPED = 3  # a pair without gradients
GROUPS = {"model": (ROWS,), "layers": CHANNELS, "some layers": (41, 49)}


class Given(NamedTuple):
    """A step after its observation."""

    grads: tuple[Side, Side]
    sums: RowSums
    effect: Tensor
    state: Sensitivity


class Outcome(NamedTuple):
    r: Tensor
    score: Tensor
    steps: Tensor
    mask: Tensor
    grads: Side


def inputs(seed: int, scale: float = 1.0) -> Given:
    """Some rows not observed, some for the first time, some effects unknown."""
    g = cases.rng(seed)
    pairs = [
        cases.twins(max(c, 1), 5, seed=seed + l, agreement=-0.5) for l, c in enumerate(CHANNELS)
    ]
    rgb, ir = ([p[m][0][:c] for p, c in zip(pairs, CHANNELS, strict=True)] for m in (0, 1))
    a, b = (torch.cat(side).double() for side in (rgb, ir))
    gram = torch.stack([a.square().sum(1), b.square().sum(1), (a * b).sum(1)], 1)

    def draw() -> Tensor:
        return scale * torch.randn(2, ROWS, generator=g, dtype=torch.float64)

    observed = torch.rand(2, ROWS, generator=g) > 0.1
    observed[:, Layout.of(CHANNELS).slices()[SKIPPED]] = False
    effect = draw()
    effect[0, 1], effect[1, 2], effect[1, 3] = torch.nan, torch.inf, -torch.inf
    steps = torch.randint(0, 3, (2, ROWS), generator=g).double()
    sums = RowSums(gram, draw(), draw().square(), observed)
    return Given((rgb, ir), sums, effect, Sensitivity(draw().square(), steps, 0.9))


def bucket_for(grads: tuple[Side, Side], buckets: Buckets) -> Bucket:
    sides = [[None if l == SKIPPED else x for l, x in enumerate(side)] for side in grads]
    return buckets.bucket(sides[0], sides[1], CPU)


def buckets() -> Buckets:
    return Buckets(Layout.of(CHANNELS), (0,) * len(CHANNELS))


def rated(
    backend: Reference | Triton,
    memory: Buckets,
    given: Given,
    groups: Sequence[int],
    kind: str = "both",
) -> Outcome:
    """What comes of copies of what is given."""
    grads = clone(given.grads[0]), clone(given.grads[1])
    state = Sensitivity(given.state.score.clone(), given.state.steps.clone(), given.state.alpha)
    r, record = backend.rate_and_apply_(
        bucket_for(grads, memory), given.sums, None if kind == "sensitivity" else given.effect,
        state, groups, RaGradRule(), by_sensitivity=kind != "effectiveness",
    )  # fmt: skip
    return Outcome(r, state.score, state.steps, record.mask, grads[0] + grads[1])


def same(a: Outcome, b: Outcome) -> bool:
    pairs = zip([*a[:4], *a.grads], [*b[:4], *b.grads], strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


@pytest.mark.parametrize(
    ("groups", "kind"),
    [
        ("model", "both"),
        ("layers", "sensitivity"),
        ("some layers", "effectiveness"),
        *[pytest.param(g, "both", marks=SLOW) for g in ("layers", "some layers")],
        *[pytest.param("model", k, marks=SLOW) for k in ("effectiveness", "sensitivity")],
    ],
)
def test_it_agrees_with_the_reference(groups: str, kind: str) -> None:
    memory, backend = buckets(), Triton()  # every launch leaves the memory ready
    for seed in range(2):
        given = inputs(seed)
        mine = rated(backend, memory, given, GROUPS[groups], kind)
        true = rated(Reference(), memory, given, GROUPS[groups], kind)
        torch.testing.assert_close(mine.r, true.r, rtol=2**-22, atol=0)
        torch.testing.assert_close(mine.score, true.score, rtol=2**-50, atol=0)
        assert torch.equal(mine.steps, true.steps)
        assert mine.r.dtype == torch.float32
        assert ((mine.r > 0) & (mine.r < 1)).all()
        assert torch.equal(mine.mask, true.mask)
        assert mine.mask.any()
        for a, b in zip(mine.grads, true.grads, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("scale", [1e-60, 1e60])
def test_scale_does_not_matter(scale: float) -> None:
    a = rated(Triton(), buckets(), inputs(1), (ROWS,), "effectiveness").r
    b = rated(Triton(), buckets(), inputs(1, scale), (ROWS,), "effectiveness").r
    torch.testing.assert_close(a, b, rtol=2**-22, atol=0)


def one_layer(rows: int) -> tuple[Bucket, Tensor]:
    """And zeros for all sums, (2, rows)."""
    grads = [torch.zeros(rows, 3)], [torch.zeros(rows, 3)]
    bucket = Buckets(Layout.of([rows]), [0]).bucket(*grads, CPU)
    return bucket, torch.zeros(2, rows, dtype=torch.float64)


def test_by_hand() -> None:
    """Two rows a side: E = 1, 3, 1, 3 has mean 2 and std 1; the first step has S = 0."""
    effect = torch.tensor([[1.0, 3.0], [1.0, 3.0]], dtype=torch.float64)
    bucket, zero = one_layer(2)
    seen, gram = torch.ones(2, 2, dtype=torch.bool), torch.zeros(2, 3, dtype=torch.float64)
    sums = RowSums(gram, zero, zero + 5, seen)
    state = Sensitivity(zero.clone(), zero.clone(), 0.9)

    def step() -> Tensor:
        return Triton().rate_and_apply_(
            bucket, sums, effect, state, (2,), RaGradRule(), by_sensitivity=True
        )[0]

    low, high = 0.5 * torch.tensor([-1.0, 1.0]).sigmoid()
    torch.testing.assert_close(step(), torch.stack([low, high]).expand(2, 2))
    assert (state.score == 0).all()  # no history, no deviation
    assert (state.steps == 1).all()
    step()
    torch.testing.assert_close(state.score, zero + 0.5)  # (1 - 0.9) 5


def test_values_without_spread_and_values_that_nobody_knows_get_one_half() -> None:
    bucket, zero = one_layer(40)
    state = Sensitivity(zero.clone(), zero.clone(), 0.9)
    gram = torch.zeros(40, 3, dtype=torch.float64)
    noise = torch.randn(2, 40, generator=cases.rng(1), dtype=torch.float64)
    alike = 7 + 1e-9 * noise  # below the rounding of float32
    for effect, observed in ((alike, True), (7 + noise, False), (zero * torch.nan, True)):
        sums = RowSums(gram, zero, zero, torch.full((2, 40), observed))
        r, _ = Triton().rate_and_apply_(
            bucket, sums, effect, state, (40,), RaGradRule(), by_sensitivity=False
        )
        assert (r == 0.5).all()


@SLOW
def test_more_rows_and_more_units_than_a_tile_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    few_values(monkeypatch, 2)
    bucket, zero = one_layer(300)
    g = cases.rng(2)
    effect, deviation, score = (
        torch.randn(2, 300, generator=g, dtype=torch.float64).exp() for _ in range(3)
    )
    seen, gram = torch.rand(2, 300, generator=g) > 0.1, torch.zeros(300, 3, dtype=torch.float64)
    results = []
    for backend in (Triton(), Reference()):
        state = Sensitivity(score.clone(), zero + 1, 0.9)
        sums = RowSums(gram, zero, deviation, seen)
        r, _ = backend.rate_and_apply_(
            bucket, sums, effect, state, (300,), RaGradRule(), by_sensitivity=True
        )
        results.append((r, *state[:2]))
    (mine, *my_state), (true, *true_state) = results
    torch.testing.assert_close(mine, true, rtol=2**-22, atol=0)
    torch.testing.assert_close(my_state, true_state, rtol=2**-50, atol=0)


def test_groups_that_are_not_made_of_whole_pairs_are_refused() -> None:
    for groups in ((40, 50), (1, 20, 20, 0, 7, 42), (1, 40), (1, 40, 0, 7, 43)):
        with pytest.raises(ValueError, match="not made of whole pairs"):
            rated(Triton(), buckets(), inputs(0), groups)


@pytest.mark.slow
@pytest.mark.parametrize("resident", [3, pytest.param(7, marks=SLOW)])
def test_the_same_bits_whatever_the_order_of_blocks(
    resident: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton_verb, "device_of", lambda device: (Tuning(correct_blocks=1), 7))
    queue = queues.queue  # every APPLY as early as it may be, so that many blocks must wait
    monkeypatch.setattr(queues, "queue", lambda cuts, grid, *rest: queue(cuts, 0, *rest))
    memory, given, groups = buckets(), inputs(5), GROUPS["some layers"]
    first = rated(Triton(), memory, given, groups)
    for seed in range(4):
        # What this leaves in memory is wrong for the call after it, should that use it too early.
        other = rated(Triton(), memory, inputs(6), groups)
        assert not torch.equal(other.mask, first.mask)
        schedule = Schedule(resident, seed)
        with interleaved(schedule):
            again = rated(Triton(), memory, given, groups)
        assert same(first, again)
        assert len(schedule.blocks) > 1, "only one block took part"


@pytest.mark.parametrize("late", [queues.MOMENTS, queues.DECIDE])
def test_a_queue_in_the_wrong_order_deadlocks(late: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the schedule finds it."""
    right = queues.queue

    def wrong(*args: object) -> object:
        queue = right(*args)  # type: ignore[arg-type]
        return queue[(queue[:, 0] % queues.KINDS == late).argsort(kind="stable")]

    monkeypatch.setattr(queues, "queue", wrong)
    with interleaved(Schedule(3, seed=0)), pytest.raises(Exception, match="wait for ever"):
        rated(Triton(), buckets(), inputs(0), (ROWS,))
