"""`RaGrad` in a loop: by call, by one line, under scaling, accumulation and copies of the model."""

from __future__ import annotations

import copy
import pickle
import warnings

import pytest
import torch
from torch import nn

from ragrad_ext import FirstOrder, Gate, Hutchinson, RaGrad, Reliability, correct_, pair_parameters

from .lib.networks import TwoStream, loss_of


def train(model: TwoStream, ragrad: RaGrad | None, steps: int = 3) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for t in range(steps):
        optimizer.zero_grad()
        loss = loss_of(model, t)
        if ragrad is None:
            loss.backward()
        else:
            ragrad.backward(loss)
            ragrad.correct_()
        optimizer.step()


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def test_two_calls_and_one_line_train_the_same_weights() -> None:
    called, attached, plain = TwoStream(), TwoStream(), TwoStream()
    train(called, RaGrad(called.rgb, called.ir))
    optimizer = torch.optim.SGD(attached.parameters(), lr=0.1)
    ragrad = RaGrad(attached.rgb, attached.ir).attach(optimizer)
    for t in range(3):
        optimizer.zero_grad()
        loss_of(attached, t).backward()
        optimizer.step()
    assert ragrad.last is not None
    train(plain, None)
    assert same(called, attached)
    assert not same(called, plain)


def test_a_correction_without_any_gradient_says_so() -> None:
    model = TwoStream()
    ragrad = RaGrad(model.rgb, model.ir)
    ragrad.backward(loss_of(model))
    model.zero_grad()  # too early
    with pytest.warns(UserWarning, match="none of the 4 paired weights has a gradient.*between"):
        ragrad.correct_()
    ragrad.backward(loss_of(model))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ragrad.correct_()


def test_correction_changes_the_paired_gradients_alone() -> None:
    model = TwoStream()
    ragrad = RaGrad(model.rgb, model.ir)
    train(model, ragrad, steps=2)
    model.zero_grad()
    ragrad.backward(loss_of(model))
    before = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    record = ragrad.correct_()
    assert ragrad.last is record
    assert record.count() > 0
    changed = {
        n for n, p in model.named_parameters() if p.grad is not None
        and not torch.equal(p.grad, before[n])
    }  # fmt: skip
    assert changed
    assert changed <= {f"{s}.{i}.weight" for s in ("rgb", "ir") for i in (0, 4)}
    # ... and by what correct_ says of the same gradients and reliability
    assert ragrad.repa.reliability is not None
    names = [[f"{s}.{i}.weight" for i in (0, 4)] for s in ("rgb", "ir")]
    grads = [[before[n] for n in side] for side in names]
    values = [r.split([6, 8]) for r in (ragrad.repa.reliability.rgb, ragrad.repa.reliability.ir)]
    correct_(*grads, Reliability(*values))
    for side, sides in zip(names, grads, strict=True):
        for name, g in zip(side, sides, strict=True):
            assert torch.equal(dict(model.named_parameters())[name].grad, g)  # type: ignore[arg-type]


def test_detach_leaves_the_optimizer_as_it_was() -> None:
    model, plain = TwoStream(), TwoStream()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    ragrad = RaGrad(model.rgb, model.ir).attach(optimizer)
    ragrad.detach()
    assert not optimizer._optimizer_step_pre_hooks
    train(model, None)
    train(plain, None)
    assert same(model, plain)
    assert ragrad.last is None


def test_nothing_stays_on_the_model() -> None:
    model = TwoStream()
    keys, attributes = list(model.state_dict()), set(vars(model))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    ragrad = RaGrad(model.rgb, model.ir).attach(optimizer)
    twin = copy.deepcopy(model).half()  # as an EMA does, before the first step
    pickle.dumps(model)
    loss_of(model).backward()
    optimizer.step()
    assert list(model.state_dict()) == keys
    assert set(vars(model)) == attributes
    for module in (*model.modules(), *twin.modules()):
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    assert all(not p._backward_hooks for p in model.parameters())
    ragrad.detach()


def test_a_scaled_loss_changes_nothing() -> None:
    """A CPU GradScaler with a power of two: the same bits as without."""
    plain, scaled = TwoStream(), TwoStream()
    train(plain, RaGrad(plain.rgb, plain.ir, effectiveness=Hutchinson(every=2)))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    optimizer = torch.optim.SGD(scaled.parameters(), lr=0.1)
    ragrad = RaGrad(scaled.rgb, scaled.ir, effectiveness=Hutchinson(every=2))
    for t in range(3):
        optimizer.zero_grad()
        ragrad.backward(loss_of(scaled, t), scaler=scaler)
        scaler.unscale_(optimizer)
        ragrad.correct_()
        scaler.step(optimizer)
        scaler.update()
    assert same(plain, scaled)


def test_attached_under_a_scaler_overflow_steps_are_not_observed() -> None:
    model = TwoStream()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    ragrad = RaGrad(model.rgb, model.ir).attach(optimizer)
    for bad in (False, True, False):
        optimizer.zero_grad()
        scaler.scale(loss_of(model) * (float("inf") if bad else 1.0)).backward()
        scaler.step(optimizer)
        scaler.update()
    assert ragrad.repa.state_dict()["steps"].unique().tolist() == [2.0]


@pytest.mark.parametrize("unscaled", [False, True])
def test_a_fused_optimizer_that_hands_over_scaled_gradients_is_told(unscaled: bool) -> None:
    model = TwoStream()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    ragrad = RaGrad(model.rgb, model.ir).attach(optimizer)
    scaler.scale(loss_of(model)).backward()
    if unscaled:
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        assert ragrad.last is not None
    else:
        with pytest.raises(RuntimeError, match=r"scaler.unscale_\(optimizer\) before"):
            scaler.step(optimizer)


def test_parameters_without_a_gradient_are_skipped() -> None:
    model = TwoStream()
    ragrad = RaGrad(model.rgb, model.ir)
    ragrad.backward(loss_of(model))
    ragrad.pairs.rgb[1].grad = None
    assert ragrad.correct_().layer(1).count() == 0


def test_pairs_found_by_rule_and_lists_of_parameters() -> None:
    model = TwoStream()
    by_rule = RaGrad(pair_parameters(model, rules=[("rgb.", "ir.")]))
    assert len(by_rule.pairs) == 2
    by_list = RaGrad(by_rule.pairs.rgb, by_rule.pairs.ir)
    assert by_list.pairs.rgb[1] is model.rgb[4].weight


def test_gradients_of_a_transposed_convolution_are_corrected_by_output_channel() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rgb, self.ir = nn.ConvTranspose2d(3, 5, 2), nn.ConvTranspose2d(3, 5, 2)

    model = Net()
    ragrad = RaGrad(model.rgb, model.ir, effectiveness=FirstOrder())
    for w in (model.rgb.weight, model.ir.weight):
        w.grad = torch.randn_like(w)
    before = model.rgb.weight.grad.clone(), model.ir.weight.grad.clone()  # type: ignore[union-attr]
    record = ragrad.correct_()
    assert record.offsets == (0, 5)
    cosine = nn.functional.cosine_similarity(
        before[0].movedim(1, 0).flatten(1), before[1].movedim(1, 0).flatten(1)
    )
    assert torch.allclose(record.cosine, cosine, atol=1e-6)


def test_misuse_is_named() -> None:
    model = TwoStream()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(TypeError, match=r"one stream; pass RaGrad\(rgb, ir\)"):
        RaGrad(model.rgb)
    with pytest.raises(TypeError, match="Pairs and a second stream"):
        RaGrad(pair_parameters(model.rgb, model.ir), model.ir)
    with pytest.raises(ValueError, match='rule "mix" is unknown'):
        RaGrad(model.rgb, model.ir, rule="mix")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match='backend "gpu" is unknown'):
        RaGrad(model.rgb, model.ir, backend="gpu")
    ragrad = RaGrad(model.rgb, model.ir).attach(optimizer)
    with pytest.raises(RuntimeError, match="a second correction would count this step twice"):
        ragrad.correct_()
    with pytest.raises(RuntimeError, match="already attached"):
        ragrad.attach(optimizer)
    ragrad.detach()
    with pytest.raises(ValueError, match="holds none of the 4 paired weights"):
        ragrad.attach(torch.optim.SGD(model.head.parameters(), lr=0.1))


def test_a_state_of_another_model_is_refused_before_anything_changes() -> None:
    model, other = TwoStream(), TwoStream("none")
    ragrad = RaGrad(model.rgb, model.ir)
    train(model, ragrad, 1)
    fresh = RaGrad(other.rgb, other.ir, effectiveness=Gate())
    fresh.load_state_dict(ragrad.state_dict())  # the same pairs: norms are not paired
    deeper = (
        nn.Sequential(model.rgb, nn.Conv2d(8, 8, 1)),
        nn.Sequential(model.ir, nn.Conv2d(8, 8, 1)),
    )
    with pytest.raises(ValueError, match="another model: it holds 2 pairs, this model has 3"):
        RaGrad(*deeper).load_state_dict(ragrad.state_dict())
    renamed = pair_parameters(model, rules=[("rgb.", "ir.")])
    with pytest.raises(ValueError, match=r"its pair 0 is 0.weight / 0.weight, here it is rgb.0.we"):
        RaGrad(renamed).load_state_dict(ragrad.state_dict())
    with pytest.raises(ValueError, match="no pairs"):
        RaGrad(renamed).load_state_dict({})
