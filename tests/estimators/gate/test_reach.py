"""How far from a row its gate may be, and what the report says where it is the row itself."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ragrad_ext import Gate, RaGrad, Repa

from ...lib.gate_cases import Case, Part, Stream, conv, effect, loss_of_sum, pair, reference, same
from ...lib.networks import TwoStream, assert_near, loss_of
from ...lib.tolerances import EFFECT_PLAIN


def test_without_hooks_rows_keep_first_order(capsys: pytest.CaptureFixture[str]) -> None:
    model = TwoStream("group")
    gate = Gate(hooks=False)
    ragrad = RaGrad(model.rgb, model.ir, effectiveness=gate)
    ragrad.backward(loss_of(model))
    weights = [*ragrad.pairs.rgb, *ragrad.pairs.ir]
    first_order = -torch.cat([(w * w.grad).flatten(1).sum(1) for w in weights])  # type: ignore[operator]
    assert_near(effect(ragrad).flatten(), first_order.double(), EFFECT_PLAIN)
    gate.report()
    assert "28 rows at their own output, -g.theta: needs a hook, and hooks=False" in (
        capsys.readouterr().out
    )


def test_attached_without_a_loss_the_report_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    model = TwoStream("group")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    ragrad = RaGrad(model.rgb, model.ir).attach(optimizer)
    loss_of(model).backward()
    optimizer.step()
    gate = ragrad.repa.effectiveness
    assert isinstance(gate, Gate)
    gate.report()
    assert "28 rows at their own output, -g.theta: its hook did not run; call ragrad" in (
        capsys.readouterr().out
    )


def shuffled(y: Tensor) -> Tensor:
    n, c, h, w = y.shape
    return y.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


@pytest.mark.parametrize(
    ("norm", "activation", "why"),
    [
        (shuffled, nn.BatchNorm2d(8, affine=False), "channels split or mixed"),
        (shuffled, F.silu, "channels split or mixed"),
        (lambda y: y + y.flip(2), F.relu, "output used several times"),
        (lambda y: y + torch.ones(1, 8, 1, 1, requires_grad=True).exp(), F.relu, "Add after"),
        (lambda y: y + nn.Parameter(torch.rand(7, 7)), F.relu, "Add after"),
        (nn.LayerNorm(7), same, "a norm over more than channels"),
        (lambda y: y.flip(1), F.relu, "Flip after"),
        (nn.LayerNorm([8, 7, 7]), same, "a norm over more than channels"),
        (lambda y: nn.GroupNorm(2, 8)(2 * y), same, "after a frozen bias or scale"),
        (lambda y: y.view(4, 2, 4 * 49).softmax(1), same, "Softmax after"),
        (same, torch.sigmoid, "Sigmoid after"),
    ],
)
def test_where_the_gate_stays_at_the_row(norm: Part, activation: Part, why: str) -> None:
    ragrad, gate, a, b = pair(Case(lambda: Stream(conv(), norm, activation), "row"))
    ragrad.backward(loss_of_sum((a, b), torch.randn(4, 3, 9, 9)))
    ragrad.correct_()
    assert gate.places is not None
    assert gate.places[0][0].kind == "row"
    assert why in gate.places[0][0].why


def test_a_norm_over_an_axis_as_long_as_the_channels() -> None:
    ragrad, gate, a, b = pair(Case(lambda: Stream(nn.Conv2d(3, 8, 3), nn.LayerNorm(8)), "row"))
    ragrad.backward(loss_of_sum((a, b), torch.randn(4, 3, 10, 10)))
    assert gate.places is not None
    assert (
        gate.places[0][0].why == "a norm over more than channels, or after a frozen bias or scale"
    )


def test_no_gain_is_used_if_a_removed_row_is_not_constant_before_the_norm() -> None:
    """With a mask between layer and BatchNorm, a removed row is not constant any more."""
    mask = torch.rand(7, 7)
    case = Case(lambda: Stream(conv(), lambda y: mask * y, F.silu), "activation")
    ragrad, gate, a, b = pair(case)
    norms = [nn.BatchNorm2d(8) for _ in range(2)]
    x = torch.randn(case.shape)
    ragrad.backward((norms[0](a(x)) + norms[1](b(x))).square().mean())
    assert gate.places is not None
    assert gate.places[0][0].kind == "activation"


def test_a_matrix_by_its_own_axis() -> None:
    """x W has its output channels on axis 1, whatever the user says."""
    x, weights = torch.randn(5, 4), [nn.Parameter(torch.randn(4, 4)) for _ in range(2)]
    for axis, kind in ((0, "row"), (1, "norm")):
        gate = Gate()
        Repa(weights[:1], weights[1:], effectiveness=gate, channel_axes=[axis])
        gate.trace(sum(F.batch_norm(x @ w, None, None, training=True) for w in weights))
        assert gate.places is not None
        assert gate.places[0][0].kind == kind


def test_a_relu_without_a_bias_before_it_needs_no_hook() -> None:
    case = Case(lambda: Stream(conv(bias=False), same, F.relu), "activation")
    ragrad, gate, a, b = pair(case)
    x = torch.randn(case.shape)
    ragrad.backward(loss_of_sum((a, b), x))
    assert gate.places is not None
    assert gate.places[0][0].kind == "row"
    loss = loss_of_sum((a, b), x)
    truth = torch.stack([reference(case, loss, stream) for stream in (a, b)])
    assert_near(effect(ragrad), truth, EFFECT_PLAIN)


def test_attention_projections_keep_their_rows() -> None:
    """Packed q, k and v: the rows are split among the heads before any nonlinearity."""
    torch.manual_seed(0)
    a, b = (nn.MultiheadAttention(8, 2, batch_first=True) for _ in range(2))
    gate = Gate()
    ragrad = RaGrad(a, b, effectiveness=gate)
    x = torch.randn(2, 5, 8)
    ragrad.backward((a(x, x, x)[0] + b(x, x, x)[0]).square().mean())
    ragrad.correct_()
    assert gate.places is not None
    assert [place.kind for place in gate.places[0]] == ["row", "row"]


def test_report(capsys: pytest.CaptureFixture[str]) -> None:
    model = TwoStream()
    model.rgb[1].weight.requires_grad_(False)  # type: ignore[union-attr]
    gate = Gate()
    ragrad = RaGrad(model.rgb, model.ir, effectiveness=gate)
    gate.report()
    ragrad.backward(loss_of(model))
    ragrad.correct_()
    gate.report(limit=1)
    assert capsys.readouterr().out.splitlines() == [
        "28 rows at their own output, -g.theta: no graph seen yet",
        "    rgb weight of pair 0  (6×3×3×3)",
        "    rgb weight of pair 1  (8×6×3×3)",
        "    ir weight of pair 0  (6×3×3×3)",
        "    ir weight of pair 1  (8×6×3×3)",
        "22 rows after a norm with statistics of the channel, -gain dL/dgain",
        "    rgb weight of pair 1  (8×6×3×3)",
        "    … 2 more",
        "6 rows after such a norm whose gain is frozen, absent or shared, by a hook",
        "    rgb weight of pair 0  (6×3×3×3)",
    ]
