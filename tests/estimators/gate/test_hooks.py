"""The gates that need hooks, against removal carried out row by row."""

from __future__ import annotations

import copy
import gc

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ragrad_ext import RaGrad
from ragrad_ext.estimators.gate.graph import consumers
from ragrad_ext.estimators.gate.search import find_places

from ...lib.gate_cases import (
    CASES,
    GROUP,
    KINDS,
    Case,
    Stream,
    clear,
    conv,
    effect,
    loss_of_sum,
    pair,
    reference,
)
from ...lib.networks import assert_near
from ...lib.tolerances import AUTOCAST_CORRELATION, EFFECT, EFFECT_PLAIN
from ...test_no_sync import NoReads


@pytest.mark.parametrize("name", CASES)
def test_against_removal_row_by_row(name: str) -> None:
    case = CASES[name]
    ragrad, gate, a, b = pair(case)
    x = torch.randn(case.shape)
    ragrad.backward(loss_of_sum((a, b), x))
    ragrad.correct_()
    assert gate.places is not None
    assert [side[0].kind for side in gate.places] == [case.kind] * 2
    for stream in (a, b):  # in place, it would overwrite what the reference reads
        if hasattr(stream.activation, "inplace"):
            stream.activation.inplace = False
    loss = loss_of_sum((a, b), x)
    truth = torch.stack([reference(case, loss, stream) for stream in (a, b)])
    assert ragrad.repa.effect is not None
    assert_near(ragrad.repa.effect, truth, EFFECT)


@KINDS
def test_micro_batches_add_up_and_steps_do_not(case: Case) -> None:
    ragrad, _, a, b = pair(case)
    batches = [torch.randn(case.shape, generator=torch.Generator().manual_seed(k)) for k in (1, 2)]
    single = []
    for x in batches:
        clear(a, b)
        ragrad.backward(loss_of_sum((a, b), x))
        single.append(effect(ragrad))
    clear(a, b)
    for x in batches:
        ragrad.backward(loss_of_sum((a, b), x))
    both = effect(ragrad)
    # after an activation the bias is found from the sums of both: the same, up to rounding
    assert_near(both, single[0] + single[1], EFFECT_PLAIN)


@KINDS
def test_a_loss_scale_does_not_matter(case: Case) -> None:
    x = torch.randn(case.shape)
    ragrad, _, a, b = pair(case)
    ragrad.backward(loss_of_sum((a, b), x))
    plain = effect(ragrad)
    ragrad, _, a, b = pair(case)
    optimizer = torch.optim.SGD([*a.parameters(), *b.parameters()], lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**13)
    for _ in range(2):
        ragrad.backward(loss_of_sum((a, b), x), scaler=scaler)
    scaler.unscale_(optimizer)
    assert_near(effect(ragrad), 2 * plain, EFFECT_PLAIN)


@KINDS
def test_under_autocast(case: Case) -> None:
    x = torch.randn(case.shape)
    ragrad, _, a, b = pair(case)
    ragrad.backward(loss_of_sum((a, b), x))
    plain = effect(ragrad)
    ragrad, gate, a, b = pair(case)
    with torch.autocast("cpu", torch.bfloat16):
        loss = loss_of_sum((a, b), x)
    ragrad.backward(loss)
    mixed = effect(ragrad)
    assert gate.places is not None
    assert gate.places[0][0].kind == case.kind
    correlation = torch.corrcoef(torch.stack([plain.flatten(), mixed.flatten()]))[0, 1]
    assert correlation > AUTOCAST_CORRELATION


def test_a_norm_that_both_streams_share() -> None:
    """The gradient of its gain mixes both streams; a hook on each use keeps them apart."""
    torch.manual_seed(0)
    shared, plain = nn.BatchNorm2d(8), [nn.BatchNorm2d(8) for _ in range(2)]
    a, b = (Stream(conv(), shared) for _ in range(2))
    ragrad = RaGrad([a.layer.weight], [b.layer.weight])
    x = torch.randn(4, 3, 9, 9)
    ragrad.backward(loss_of_sum((a, b), x))
    found = effect(ragrad)
    a.norm, b.norm = plain
    clear(a, b)
    ragrad = RaGrad([a.layer.weight], [b.layer.weight])
    ragrad.backward(loss_of_sum((a, b), x))
    assert_near(found, effect(ragrad), EFFECT_PLAIN)


def alive(pointers: set[int]) -> list[Tensor]:
    """The tensors in this process whose memory starts at one of these addresses."""
    return [t for t in gc.get_objects() if type(t) is Tensor and t.data_ptr() in pointers]


@KINDS
def test_nothing_is_kept_after_the_backward(case: Case) -> None:
    """No hook on a module or parameter; no activation outlives the backward while the loss does."""
    ragrad, _, a, b = pair(case)
    loss = loss_of_sum((a, b), torch.randn(case.shape))
    activations = {t.data_ptr() for s in (a, b) for t in (s.y, s.n, s.a)}
    assert len(alive(activations)) >= 4
    size = a.y.numel()
    for stream in (a, b):
        del stream.y, stream.n, stream.a
    ragrad.backward(loss)
    assert not alive(activations)
    assert not [t for t in gc.get_objects() if type(t) is Tensor and t.numel() == size]
    for module in (*a.modules(), *b.modules()):
        assert not module._forward_hooks
        assert not module._backward_hooks
    assert all(not p._backward_hooks for p in (*a.parameters(), *b.parameters()))
    copy.deepcopy((a, b))
    assert loss.grad_fn is not None


@KINDS
def test_a_graph_that_is_never_differentiated_is_freed(case: Case) -> None:
    ragrad, _, a, b = pair(case)
    loss = loss_of_sum((a, b), torch.randn(case.shape))
    pointers = {a.y.data_ptr(), b.y.data_ptr()}
    ragrad.repa.before_backward(loss)
    for stream in (a, b):
        del stream.y, stream.n, stream.a
    del loss, stream
    assert not alive(pointers)


@KINDS
def test_nothing_waits_for_the_device(case: Case) -> None:
    ragrad, _, a, b = pair(case)
    loss = loss_of_sum((a, b), torch.randn(case.shape))
    with NoReads():
        ragrad.backward(loss)
        ragrad.correct_()


def test_checkpointed_activations_are_not_read() -> None:
    """They may be recomputed only once, by the backward; reading them too would fail the step."""
    ragrad, gate, a, b = pair(GROUP)
    x = torch.randn(GROUP.shape, requires_grad=True)
    out = [checkpoint(stream, x, use_reentrant=False) for stream in (a, b)]
    ragrad.backward((out[0] + out[1]).square().mean())
    assert effect(ragrad).abs().max() > 0
    assert gate.places is not None
    assert "checkpoint" in gate.places[0][0].why


@KINDS
@pytest.mark.filterwarnings("ignore:Using backward.. with create_graph")
def test_a_backward_with_create_graph_changes_nothing(case: Case) -> None:
    """What hooks sum up never holds a graph."""
    x = torch.randn(case.shape)
    ragrad, _, a, b = pair(case)
    ragrad.backward(loss_of_sum((a, b), x))
    plain = effect(ragrad)
    clear(a, b)
    loss = loss_of_sum((a, b), x)
    sums: list[Tensor] = []
    for ((_, hook),) in find_places(consumers([loss]), ragrad.repa.twins):
        assert hook is not None
        hook(sums.append)
    ragrad.backward(loss, create_graph=True)
    assert_near(effect(ragrad), plain, EFFECT_PLAIN)
    assert len(sums) == 2
    assert not any(s.requires_grad for s in sums)
    clear(a, b)


def test_a_dead_channel_has_no_effect() -> None:
    case = CASES["bias, ReLU in place"]
    ragrad, _, a, b = pair(case)
    with torch.no_grad():
        a.layer.bias[2] = -100.0  # type: ignore[index]
    ragrad.backward(loss_of_sum((a, b), torch.randn(case.shape)))
    assert effect(ragrad).isfinite().all()
    assert effect(ragrad)[0, 2] == 0
