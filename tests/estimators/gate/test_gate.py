"""Which gain belongs to which row: found by dataflow, or not used."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ragrad_ext import Gate, RaGrad, Repa

from ...lib.networks import TwoStream, assert_near, loss_of
from ...lib.tolerances import EFFECT_PLAIN


class Stream(nn.Module):
    """One convolution and the norm that a test puts after it."""

    def __init__(self, norm: nn.Module, layer: nn.Module | None = None) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 3) if layer is None else layer
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.layer(x))


def gains(a: nn.Module, b: nn.Module, x: Tensor) -> list[Tensor | None]:
    """The gains that the gate finds for ``a.layer.weight`` and ``b.layer.weight``."""
    gate = Gate()
    Repa([a.layer.weight], [b.layer.weight], effectiveness=gate)  # type: ignore[list-item]
    gate.trace((a(x).relu() + b(x)).sum())
    assert gate.gains is not None
    return [gate.gains[0][0], gate.gains[1][0]]


IMAGES, FEATURES = torch.randn(4, 3, 8, 8), torch.randn(6, 3)


def found(make: object, x: Tensor = IMAGES) -> bool:
    a, b = make(), make()  # type: ignore[operator]
    gain = gains(a, b, x)
    assert gain in ([None, None], [a.norm.weight, b.norm.weight]) or gain[0] is a.norm.weight
    return gain[0] is not None and gain[0] is a.norm.weight and gain[1] is b.norm.weight


def test_found_after_statistics_of_the_channel() -> None:
    assert found(lambda: Stream(nn.BatchNorm2d(4)))
    assert found(lambda: Stream(nn.InstanceNorm2d(4, affine=True)))
    assert found(lambda: Stream(nn.BatchNorm1d(4), nn.Linear(3, 4)), FEATURES)
    assert found(lambda: Stream(nn.BatchNorm1d(4), nn.Linear(3, 4, bias=False)), FEATURES)
    assert found(lambda: Stream(nn.BatchNorm2d(4), nn.ConvTranspose2d(3, 4, 3))) is False  # axis 0
    assert found(lambda: Stream(nn.BatchNorm2d(3), nn.Conv2d(3, 3, 3, groups=3)))


def test_not_used_where_the_loss_depends_on_the_scale_of_a_row() -> None:
    assert not found(lambda: Stream(nn.BatchNorm2d(4).eval()))
    assert not found(lambda: Stream(nn.GroupNorm(2, 4)))
    assert not found(lambda: Stream(nn.GroupNorm(4, 4)))


def test_not_used_without_a_trainable_gain() -> None:
    def frozen() -> Stream:
        stream = Stream(nn.BatchNorm2d(4))
        stream.norm.weight.requires_grad_(False)  # type: ignore[union-attr]
        return stream

    a, b = frozen(), frozen()
    assert gains(a, b, IMAGES) == [None, None]
    a, b = (Stream(nn.BatchNorm2d(4, affine=False)) for _ in range(2))
    assert gains(a, b, IMAGES) == [None, None]


def test_a_transposed_convolution_by_its_own_axis() -> None:
    a, b = (Stream(nn.BatchNorm2d(4), nn.ConvTranspose2d(3, 4, 3)) for _ in range(2))
    ragrad = RaGrad(a, b)
    ragrad.backward((a(IMAGES) * b(IMAGES)).sum())
    gate = ragrad.repa.effectiveness
    assert isinstance(gate, Gate)
    assert gate.gains is not None
    assert gate.gains[0][0] is a.norm.weight


def test_names_and_modules_do_not_matter() -> None:
    """The same network in plain functions."""
    kernels, scales, shifts = (
        [nn.Parameter(torch.rand(shape)) for _ in range(2)] for shape in ((4, 3, 3, 3), (4,), (4,))
    )
    gate = Gate()
    Repa(kernels[:1], kernels[1:], effectiveness=gate)
    out = [
        F.batch_norm(F.conv2d(IMAGES, k), None, None, s, t, training=True)
        for k, s, t in zip(kernels, scales, shifts, strict=True)
    ]
    gate.trace(out[0] + out[1])
    assert gate.gains is not None
    assert gate.gains[0][0] is scales[0]
    assert gate.gains[1][0] is scales[1]


def test_an_output_that_also_goes_elsewhere_keeps_its_own_gate() -> None:
    class Residual(Stream):
        def forward(self, x: Tensor) -> Tensor:
            y = self.layer(x)
            return self.norm(y) + y

    a, b = Residual(nn.BatchNorm2d(4)), Residual(nn.BatchNorm2d(4))
    assert gains(a, b, IMAGES) == [None, None]


def test_not_used_if_the_norm_is_shared_or_the_weight_is_used_twice() -> None:
    norm = nn.BatchNorm2d(4)
    assert gains(Stream(norm), Stream(norm), IMAGES) == [None, None]

    class Twice(Stream):
        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.layer(x)) + F.conv2d(x, self.layer.weight)  # type: ignore[arg-type]

    assert gains(Twice(nn.BatchNorm2d(4)), Twice(nn.BatchNorm2d(4)), IMAGES) == [None, None]


def test_found_under_autocast() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert found(lambda: Stream(nn.BatchNorm2d(4)))


@pytest.mark.parametrize("norm", ["batch", "none"])
def test_the_gate_is_the_slope_of_the_loss_in_a_switch_on_each_row(norm: str) -> None:
    """E = -dL/da_i with a_i = 1 on the row's output, or on the norm's output less its bias."""
    model = TwoStream(norm)
    ragrad = RaGrad(model.rgb, model.ir, effectiveness=Gate())
    switches: list[Tensor] = []

    def switch(module: nn.Module, args: object, output: Tensor) -> Tensor:
        bias = module.bias if norm == "batch" else None
        shift = 0 if bias is None else bias.detach().view(-1, 1, 1)
        a = torch.ones(output.shape[1], 1, 1, requires_grad=True)
        switches.append(a)
        return (output - shift) * a + shift

    at = nn.BatchNorm2d if norm == "batch" else nn.Conv2d
    handles = [m.register_forward_hook(switch) for m in model.modules() if isinstance(m, at)]
    if norm == "none":  # a convolution's bias belongs to the output, not to the row
        for m in model.modules():
            if isinstance(m, nn.Conv2d):
                m.bias = None
    torch.autograd.backward(loss_of(model))
    truth = -torch.cat([a.grad.flatten() for a in switches]).view(2, -1).double()  # type: ignore[union-attr]
    for handle in handles:
        handle.remove()
    model.zero_grad()
    ragrad.backward(loss_of(model))
    ragrad.correct_()
    assert ragrad.repa.effect is not None
    assert_near(ragrad.repa.effect, truth, EFFECT_PLAIN)


def test_attached_the_first_forward_is_traced_and_then_the_watch_ends() -> None:
    from torch.nn.modules import module as module_hooks

    model = TwoStream()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    ragrad = RaGrad(model.rgb, model.ir).attach(optimizer)
    with torch.no_grad():
        loss_of(model)
    with pytest.raises(RuntimeError):  # a failed forward does not confuse the watch
        model(torch.zeros(1, 5, 4, 4), torch.zeros(1, 5, 4, 4))
    loss_of(model).backward()
    optimizer.step()
    gate = ragrad.repa.effectiveness
    assert isinstance(gate, Gate)
    assert gate.gains is not None
    bns = [[m.weight for m in s if isinstance(m, nn.BatchNorm2d)] for s in (model.rgb, model.ir)]
    assert all(
        a is b for x, y in zip(gate.gains, bns, strict=True) for a, b in zip(x, y, strict=True)
    )
    assert not module_hooks._global_forward_hooks
    assert not module_hooks._global_forward_pre_hooks


def test_a_compiled_model_gives_a_warning_and_may_be_traced_before() -> None:
    model = TwoStream()
    compiled = torch.compile(model, backend="aot_eager")
    images = torch.randn(4, 3, 8, 8), torch.randn(4, 3, 8, 8)
    ragrad = RaGrad(model.rgb, model.ir)
    with pytest.warns(UserWarning, match="compiled part of the model hides its normalisations"):
        ragrad.backward(compiled(*images).sum())
    traced = RaGrad(model.rgb, model.ir)
    gate = traced.repa.effectiveness
    assert isinstance(gate, Gate)
    gate.trace(model(*images))
    traced.backward(compiled(*images).sum())
    assert gate.gains is not None
    assert all(gain is not None for side in gate.gains for gain in side)


def test_a_forward_that_was_never_seen_is_reported() -> None:
    model = TwoStream()
    ragrad = RaGrad(model.rgb, model.ir)
    loss_of(model).backward()
    with pytest.raises(RuntimeError, match=r"seen no loss to trace: call ragrad.backward\(loss\)"):
        ragrad.correct_()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    RaGrad(model.rgb, model.ir).attach(optimizer)
    with pytest.warns(UserWarning, match="Gate could not trace the model"):
        optimizer.step()


def test_a_teacher_that_runs_beside_the_model_changes_nothing() -> None:
    model, teacher = TwoStream(), TwoStream(seed=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    ragrad = RaGrad(model.rgb, model.ir).attach(optimizer)
    loss = loss_of(model)
    loss_of(teacher)
    loss.backward()
    optimizer.step()
    gate = ragrad.repa.effectiveness
    assert isinstance(gate, Gate)
    assert gate.gains is not None
    assert gate.gains[0][0] is model.rgb[1].weight
