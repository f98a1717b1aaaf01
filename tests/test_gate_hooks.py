"""The gates that need hooks, against removal carried out row by row."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torchvision.ops import FrozenBatchNorm2d

from ragrad_ext import Gate, RaGrad, Repa

from .networks import TwoStream, loss_of
from .test_no_sync import NoReads

Part = Callable[[Tensor], Tensor]


def same(x: Tensor) -> Tensor:
    return x


class Stream(nn.Module):
    """A layer, a norm and an activation; each may do more than its name says."""

    def __init__(self, layer: nn.Module, norm: Part = same, activation: Part = same) -> None:
        super().__init__()
        self.layer, self.norm, self.activation = layer, norm, activation

    def forward(self, x: Tensor) -> Tensor:
        self.y = self.layer(x)
        self.n = self.norm(self.y)
        self.a = self.activation(self.n)
        return self.a

    def removed(self, i: int, axis: int) -> tuple[Tensor, Tensor]:
        """norm and activation without row i."""
        y = self.y.detach().clone()
        bias = getattr(self.layer, "bias", None)
        y.select(axis, i).fill_(0.0 if bias is None else float(bias[i]))
        n = self.norm(y)
        return n, self.activation(n)


class Frozen(FrozenBatchNorm2d):
    """With statistics that shift some channels up and some down."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.bias.copy_(torch.linspace(-0.5, 0.5, channels))
        self.weight.copy_(torch.linspace(0.5, 1.5, channels))


def frozen_gain(channels: int) -> nn.Module:
    norm = nn.BatchNorm2d(channels)
    nn.init.uniform_(norm.weight, 0.5, 1.5).requires_grad_(False)
    return norm


def evaluated(channels: int) -> nn.Module:
    norm = nn.BatchNorm2d(channels).eval()
    nn.init.uniform_(norm.bias, -0.5, 0.5)
    norm.running_mean.uniform_(-0.3, 0.3)  # type: ignore[union-attr]
    return norm


def trained(norm: nn.Module) -> nn.Module:
    """Gains and biases as after training."""
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    nn.init.uniform_(norm.bias, -0.5, 0.5)
    return norm


def last(norm: nn.Module) -> Part:
    """A norm over the last axis, of images."""
    return lambda x: norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


@dataclass
class Case:
    make: Callable[[], Stream]
    kind: str
    axis: int = 1
    shape: tuple[int, ...] = (4, 3, 9, 9)
    weight_axis: int = field(default=0)


def conv(**more: bool | int) -> nn.Module:
    return nn.Conv2d(3, 8, 3, **more)  # type: ignore[arg-type]


def loud(layer: nn.Module) -> nn.Module:
    """With outputs so large that their variance swallows a norm's eps."""
    nn.init.normal_(layer.weight, std=1e4)
    return layer


CASES = {
    "GroupNorm, ReLU": Case(lambda: Stream(conv(), trained(nn.GroupNorm(2, 8)), F.relu), "mixing"),
    "GroupNorm, SiLU in place": Case(
        lambda: Stream(conv(), trained(nn.GroupNorm(2, 8)), nn.SiLU(inplace=True)), "mixing"
    ),
    "GroupNorm alone": Case(lambda: Stream(conv(bias=False), nn.GroupNorm(4, 8)), "mixing"),
    "GroupNorm without gain": Case(
        lambda: Stream(conv(), nn.GroupNorm(2, 8, affine=False), F.relu), "mixing"
    ),
    "GroupNorm of single channels": Case(
        lambda: Stream(conv(), trained(nn.GroupNorm(8, 8)), F.relu), "mixing"
    ),
    "GroupNorm of single loud channels": Case(
        lambda: Stream(loud(conv()), trained(nn.GroupNorm(8, 8)), F.relu), "mixing"
    ),
    "LayerNorm, GELU": Case(
        lambda: Stream(nn.Linear(3, 8), trained(nn.LayerNorm(8)), F.gelu), "mixing", 2, (4, 7, 3)
    ),
    "LayerNorm over channels": Case(
        lambda: Stream(conv(), last(trained(nn.LayerNorm(8)))), "mixing"
    ),
    "BatchNorm, frozen gain": Case(lambda: Stream(conv(), frozen_gain(8)), "norm"),
    "BatchNorm, no gain": Case(lambda: Stream(conv(), nn.BatchNorm2d(8, affine=False)), "norm"),
    "BatchNorm of features": Case(
        lambda: Stream(nn.Linear(3, 8), nn.BatchNorm1d(8, affine=False)), "norm", 1, (9, 3)
    ),
    "InstanceNorm, no gain": Case(lambda: Stream(conv(), nn.InstanceNorm2d(8)), "norm"),
    "activation, BatchNorm": Case(
        lambda: Stream(conv(), lambda y: nn.BatchNorm2d(8, affine=False)(F.silu(y))), "norm"
    ),
    "FrozenBatchNorm, ReLU": Case(
        lambda: Stream(conv(bias=False), Frozen(8), F.relu), "activation"
    ),
    "FrozenBatchNorm, SiLU": Case(
        lambda: Stream(conv(bias=False), Frozen(8), F.silu), "activation"
    ),
    "BatchNorm in evaluation": Case(lambda: Stream(conv(), evaluated(8), F.relu), "activation"),
    "bias, ReLU in place": Case(
        lambda: Stream(conv(), same, nn.ReLU(inplace=True)), "activation"
    ),
    "bias, leaky ReLU in place": Case(
        lambda: Stream(conv(), same, nn.LeakyReLU(0.2, inplace=True)), "activation"
    ),
    "bias, ReLU6": Case(lambda: Stream(conv(), same, F.relu6), "activation"),
    "bias, Mish": Case(lambda: Stream(conv(), same, F.mish), "activation"),
    "bias, Hardswish": Case(lambda: Stream(conv(), same, F.hardswish), "activation"),
    "bias, ELU": Case(lambda: Stream(conv(), same, F.elu), "activation"),
    "bias, SELU": Case(lambda: Stream(conv(), same, F.selu), "activation"),
    "linear, GELU": Case(
        lambda: Stream(nn.Linear(3, 8), same, lambda x: F.gelu(x, approximate="tanh")),
        "activation", 2, (4, 7, 3),
    ),
    "linear, transposed, GELU": Case(
        lambda: Stream(nn.Linear(3, 8), lambda y: y.transpose(-2, -1), F.gelu),
        "activation", 2, (4, 7, 3),
    ),
    "linear on channels last, GELU": Case(
        lambda: Stream(nn.Linear(3, 8), lambda y: y.permute(0, 3, 1, 2), F.gelu),
        "activation", 3, (2, 5, 5, 3),
    ),
    "transposed, bias, ReLU": Case(
        lambda: Stream(nn.ConvTranspose2d(3, 8, 3), same, F.relu), "activation", weight_axis=1
    ),
    "depthwise, GroupNorm": Case(
        lambda: Stream(nn.Conv2d(4, 8, 3, groups=4), nn.GroupNorm(2, 8)), "mixing", 1, (4, 4, 9, 9)
    ),
}  # fmt: skip


def pair(case: Case) -> tuple[RaGrad, Gate, Stream, Stream]:
    torch.manual_seed(0)
    a, b = case.make(), case.make()
    gate = Gate()
    return RaGrad(a, b, effectiveness=gate), gate, a, b


def loss_behind(streams: tuple[Stream, ...], x: Tensor) -> Tensor:
    """A loss that sees every element differently and bends."""
    out = sum(stream(x) for stream in streams)
    assert isinstance(out, Tensor)
    g = torch.Generator().manual_seed(3)
    return (out * torch.randn(out.shape, generator=g)).mean().add(0.1).square().mul(10) + (
        out.square().mean()
    )


def reference(case: Case, loss: Tensor, stream: Stream) -> Tensor:
    """``sum (t' - t) dL/dt``, every row really removed from the output of the layer."""
    dn, da = torch.autograd.grad(loss, [stream.n, stream.a], retain_graph=True)
    effects = []
    for i in range(8):
        with torch.no_grad():
            n, a = stream.removed(i, case.axis)
            through_norm, through_activation = (n - stream.n) * dn, (a - stream.a) * da
            if case.kind == "activation":
                effects.append(through_activation.sum())
            else:  # the row's own channel up to the activation, the others up to the norm
                own = through_norm.select(1 if n.dim() > 3 else case.axis, i)
                own_a = through_activation.select(1 if n.dim() > 3 else case.axis, i)
                effects.append(through_norm.sum() - own.sum() + own_a.sum())
    return torch.stack(effects).double()


@pytest.mark.parametrize("name", CASES)
def test_against_removal_row_by_row(name: str) -> None:
    case = CASES[name]
    ragrad, gate, a, b = pair(case)
    x = torch.randn(case.shape)
    ragrad.backward(loss_behind((a, b), x))
    ragrad.correct_()
    assert gate.places is not None
    assert [side[0].kind for side in gate.places] == [case.kind] * 2
    for stream in (a, b):  # in place, it would overwrite what the reference reads
        if hasattr(stream.activation, "inplace"):
            stream.activation.inplace = False
    loss = loss_behind((a, b), x)
    truth = torch.stack([reference(case, loss, stream) for stream in (a, b)])
    assert ragrad.repa.effect is not None
    assert (ragrad.repa.effect - truth).abs().max() < 1e-4 * truth.abs().max()


GROUP, FROZEN, NO_GAIN = (
    CASES[k] for k in ("GroupNorm, ReLU", "FrozenBatchNorm, SiLU", "BatchNorm, no gain")
)
KINDS = pytest.mark.parametrize("case", [GROUP, FROZEN, NO_GAIN], ids=lambda case: case.kind)


def effect(ragrad: RaGrad) -> Tensor:
    ragrad.correct_()
    assert ragrad.repa.effect is not None
    return ragrad.repa.effect


def clear(*streams: Stream) -> None:
    for stream in streams:
        stream.zero_grad()


@KINDS
def test_micro_batches_add_up_and_steps_do_not(case: Case) -> None:
    ragrad, _, a, b = pair(case)
    batches = [torch.randn(case.shape, generator=torch.Generator().manual_seed(k)) for k in (1, 2)]
    single = []
    for x in batches:
        clear(a, b)
        ragrad.backward(loss_behind((a, b), x))
        single.append(effect(ragrad))
    clear(a, b)
    for x in batches:
        ragrad.backward(loss_behind((a, b), x))
    both = effect(ragrad)
    # behind an activation the bias is found from the sums of both: the same, up to rounding
    assert torch.allclose(both, single[0] + single[1], rtol=0, atol=1e-4 * float(both.abs().max()))


@KINDS
def test_a_loss_scale_does_not_matter(case: Case) -> None:
    x = torch.randn(case.shape)
    ragrad, _, a, b = pair(case)
    ragrad.backward(loss_behind((a, b), x))
    plain = effect(ragrad)
    ragrad, _, a, b = pair(case)
    optimizer = torch.optim.SGD([*a.parameters(), *b.parameters()], lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**13)
    for _ in range(2):
        ragrad.backward(loss_behind((a, b), x), scaler=scaler)
    scaler.unscale_(optimizer)
    assert torch.allclose(effect(ragrad), 2 * plain, rtol=1e-4)


@KINDS
def test_under_autocast(case: Case) -> None:
    x = torch.randn(case.shape)
    ragrad, _, a, b = pair(case)
    ragrad.backward(loss_behind((a, b), x))
    plain = effect(ragrad)
    ragrad, gate, a, b = pair(case)
    with torch.autocast("cpu", torch.bfloat16):
        loss = loss_behind((a, b), x)
    ragrad.backward(loss)
    mixed = effect(ragrad)
    assert gate.places is not None
    assert gate.places[0][0].kind == case.kind
    assert torch.corrcoef(torch.stack([plain.flatten(), mixed.flatten()]))[0, 1] > 0.99


def test_a_norm_that_both_streams_share() -> None:
    """Its gain's gradient tells of both; a hook in front of it tells them apart."""
    torch.manual_seed(0)
    shared, plain = nn.BatchNorm2d(8), [nn.BatchNorm2d(8) for _ in range(2)]
    a, b = (Stream(conv(), shared) for _ in range(2))
    ragrad = RaGrad([a.layer.weight], [b.layer.weight])
    x = torch.randn(4, 3, 9, 9)
    ragrad.backward(loss_behind((a, b), x))
    found = effect(ragrad)
    a.norm, b.norm = plain
    clear(a, b)
    ragrad = RaGrad([a.layer.weight], [b.layer.weight])
    ragrad.backward(loss_behind((a, b), x))
    assert torch.allclose(found, effect(ragrad), rtol=1e-4, atol=1e-7)


def alive(pointers: set[int]) -> list[Tensor]:
    """The tensors in this process that lie at one of these addresses."""
    return [t for t in gc.get_objects() if type(t) is Tensor and t.data_ptr() in pointers]


@KINDS
def test_nothing_stays(case: Case) -> None:
    """No hook on a module or parameter; no activation outlives the backward while the loss does."""
    ragrad, _, a, b = pair(case)
    loss = loss_behind((a, b), torch.randn(case.shape))
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
def test_a_graph_that_is_never_differentiated_goes(case: Case) -> None:
    ragrad, _, a, b = pair(case)
    loss = loss_behind((a, b), torch.randn(case.shape))
    pointers = {a.y.data_ptr(), b.y.data_ptr()}
    ragrad.repa.before_backward(loss)
    for stream in (a, b):
        del stream.y, stream.n, stream.a
    del loss, stream
    assert not alive(pointers)


@KINDS
def test_no_value_is_read_off_the_device(case: Case) -> None:
    ragrad, _, a, b = pair(case)
    loss = loss_behind((a, b), torch.randn(case.shape))
    with NoReads():
        ragrad.backward(loss)
        ragrad.correct_()


def test_without_hooks_rows_keep_first_order(capsys: pytest.CaptureFixture[str]) -> None:
    model = TwoStream("group")
    gate = Gate(hooks=False)
    ragrad = RaGrad(model.rgb, model.ir, effectiveness=gate)
    ragrad.backward(loss_of(model))
    weights = [*ragrad.pairs.rgb, *ragrad.pairs.ir]
    first_order = -torch.cat([(w * w.grad).flatten(1).sum(1) for w in weights])  # type: ignore[operator]
    assert torch.allclose(effect(ragrad).flatten(), first_order.double(), rtol=1e-4, atol=1e-7)
    gate.report()
    assert "28 rows at their own output, -g.theta: needs a hook, and hooks=False" in (
        capsys.readouterr().out
    )


def test_attached_no_loss_is_seen_and_it_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    model = TwoStream("group")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    ragrad = RaGrad(model.rgb, model.ir).attach(optimizer)
    loss_of(model).backward()
    optimizer.step()
    gate = ragrad.repa.effectiveness
    assert isinstance(gate, Gate)
    gate.report()
    assert "28 rows at their own output, -g.theta: its hook did not run: ragrad.backward" in (
        capsys.readouterr().out
    )


def test_checkpointed_activations_are_left_to_the_backward() -> None:
    """They may be recomputed once only; a second reading would fail the step."""
    ragrad, gate, a, b = pair(GROUP)
    x = torch.randn(GROUP.shape, requires_grad=True)
    out = [checkpoint(stream, x, use_reentrant=False) for stream in (a, b)]
    ragrad.backward((out[0] + out[1]).square().mean())
    assert effect(ragrad).abs().max() > 0
    assert gate.places is not None
    assert "checkpoint" in gate.places[0][0].why


def shuffled(y: Tensor) -> Tensor:
    n, c, h, w = y.shape
    return y.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


@pytest.mark.parametrize(
    ("norm", "activation", "why"),
    [
        (shuffled, nn.BatchNorm2d(8, affine=False), "channels split or mixed"),
        (shuffled, F.silu, "channels split or mixed"),
        (lambda y: y + y.flip(2), F.relu, "output used several times"),
        (lambda y: y + torch.ones(1, 8, 1, 1, requires_grad=True).exp(), F.relu, "Add behind"),
        (lambda y: y + nn.Parameter(torch.rand(7, 7)), F.relu, "Add behind"),
        (nn.LayerNorm(7), same, "a norm over more than channels"),
        (lambda y: y.flip(1), F.relu, "Flip behind"),
        (nn.LayerNorm([8, 7, 7]), same, "a norm over more than channels"),
        (lambda y: nn.GroupNorm(2, 8)(2 * y), same, "behind a frozen bias or scale"),
        (lambda y: y.view(4, 2, 4 * 49).softmax(1), same, "Softmax behind"),
        (same, torch.sigmoid, "Sigmoid behind"),
    ],
)
def test_where_the_gate_stays_at_the_row(norm: Part, activation: Part, why: str) -> None:
    ragrad, gate, a, b = pair(Case(lambda: Stream(conv(), norm, activation), "row"))
    ragrad.backward(loss_behind((a, b), torch.randn(4, 3, 9, 9)))
    ragrad.correct_()
    assert gate.places is not None
    assert gate.places[0][0].kind == "row"
    assert why in gate.places[0][0].why


def test_a_norm_over_an_axis_as_long_as_the_channels() -> None:
    ragrad, gate, a, b = pair(Case(lambda: Stream(nn.Conv2d(3, 8, 3), nn.LayerNorm(8)), "row"))
    ragrad.backward(loss_behind((a, b), torch.randn(4, 3, 10, 10)))
    assert gate.places is not None
    assert (
        gate.places[0][0].why == "a norm over more than channels, or behind a frozen bias or scale"
    )


def test_a_flat_channel_must_stay_flat() -> None:
    """A mask between layer and BatchNorm: a removed row is no constant there any more."""
    mask = torch.rand(7, 7)
    case = Case(lambda: Stream(conv(), lambda y: mask * y, F.silu), "activation")
    ragrad, gate, a, b = pair(case)
    norms = [nn.BatchNorm2d(8) for _ in range(2)]
    x = torch.randn(case.shape)
    ragrad.backward((norms[0](a(x)) + norms[1](b(x))).square().mean())
    assert gate.places is not None
    assert gate.places[0][0].kind == "activation"


def test_a_matrix_by_its_own_axis() -> None:
    """x W has its output channels on axis 1, whatever axis they are said to lie on."""
    x, weights = torch.randn(5, 4), [nn.Parameter(torch.randn(4, 4)) for _ in range(2)]
    for axis, kind in ((0, "row"), (1, "norm")):
        gate = Gate()
        Repa(weights[:1], weights[1:], effectiveness=gate, channel_axes=[axis])
        gate.trace(sum(F.batch_norm(x @ w, None, None, training=True) for w in weights))
        assert gate.places is not None
        assert gate.places[0][0].kind == kind


@KINDS
def test_a_backward_that_is_differentiated_again(case: Case) -> None:
    ragrad, gate, a, b = pair(case)
    ragrad.backward(loss_behind((a, b), torch.randn(case.shape)), create_graph=True)
    assert len(gate._sums) == 2
    assert not any(s.requires_grad for s in gate._sums.values())
    clear(a, b)


def test_a_relu_behind_no_bias_needs_no_hook() -> None:
    case = Case(lambda: Stream(conv(bias=False), same, F.relu), "activation")
    ragrad, gate, a, b = pair(case)
    x = torch.randn(case.shape)
    ragrad.backward(loss_behind((a, b), x))
    assert gate.places is not None
    assert gate.places[0][0].kind == "row"
    loss = loss_behind((a, b), x)
    truth = torch.stack([reference(case, loss, stream) for stream in (a, b)])
    assert torch.allclose(effect(ragrad), truth, rtol=1e-4, atol=1e-6)


def test_attention_projections_keep_their_rows() -> None:
    """Packed q, k and v: the rows are split among the heads before anything bends."""
    torch.manual_seed(0)
    a, b = (nn.MultiheadAttention(8, 2, batch_first=True) for _ in range(2))
    gate = Gate()
    ragrad = RaGrad(a, b, effectiveness=gate)
    x = torch.randn(2, 5, 8)
    ragrad.backward((a(x, x, x)[0] + b(x, x, x)[0]).square().mean())
    ragrad.correct_()
    assert gate.places is not None
    assert [place.kind for place in gate.places[0]] == ["row", "row"]


def test_a_dead_channel_counts_nothing() -> None:
    case = CASES["bias, ReLU in place"]
    ragrad, _, a, b = pair(case)
    with torch.no_grad():
        a.layer.bias[2] = -100.0  # type: ignore[index]
    ragrad.backward(loss_behind((a, b), torch.randn(case.shape)))
    assert effect(ragrad).isfinite().all()
    assert effect(ragrad)[0, 2] == 0


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
        "22 rows behind a norm with statistics of the channel, -gain dL/dgain",
        "    rgb weight of pair 1  (8×6×3×3)",
        "    … 2 more",
        "6 rows behind such a norm, its gain frozen, absent or shared, by a hook",
        "    rgb weight of pair 0  (6×3×3×3)",
    ]
