"""Eq. 1 itself."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ragrad_ext.audit import counterfactual

from .lib.networks import TwoStream, loss_of
from .lib.tolerances import LOSS_DIFFERENCE


def test_eq1_by_hand() -> None:
    """L = (sum of all weights)^2: without a row of sum s, L becomes (S - s)^2."""
    rgb, ir = torch.tensor([[1.0, 2.0], [3.0, 0.0]]), torch.tensor([[1.0, -2.0], [0.5, 0.5]])

    def loss() -> Tensor:
        return (rgb.sum() + ir.sum()).square()  # S = 6

    out = counterfactual(loss, [rgb], [ir], progress=False)
    assert out.rgb[0].tolist() == [9.0 - 36, 9.0 - 36]
    assert out.ir[0].tolist() == [49.0 - 36, 25.0 - 36]


def test_everything_is_restored_bit_for_bit() -> None:
    model = TwoStream(dropout=0.4)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = torch.get_rng_state()
    convolutions = [
        [m.weight for m in s if isinstance(m, nn.Conv2d)] for s in (model.rgb, model.ir)
    ]
    out = counterfactual(lambda: loss_of(model), *convolutions, progress=False)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert [len(e) for e in out.rgb] == [6, 8]
    assert all(e.abs().max() > 100 * LOSS_DIFFERENCE for e in (*out.rgb, *out.ir))


def test_the_same_dropout_in_every_forward() -> None:
    """Removing a channel that is zero already changes nothing at all."""
    model = TwoStream("none", dropout=0.5)
    with torch.no_grad():
        model.rgb[4].weight[3] = 0  # type: ignore[index]
    out = counterfactual(
        lambda: loss_of(model), [model.rgb[4].weight], [model.ir[4].weight], progress=False
    )
    assert out.rgb[0][3] == 0.0
    assert (out.rgb[0] != 0).sum() >= 6


def test_weights_are_restored_after_an_exception() -> None:
    rgb, ir = torch.ones(2, 2), torch.ones(2, 2)
    calls = []

    def loss() -> Tensor:
        calls.append(None)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return rgb.sum()

    with pytest.raises(KeyboardInterrupt):
        counterfactual(loss, [rgb], [ir], progress=False)
    assert (rgb == 1).all()


def test_chosen_layers_and_other_axes() -> None:
    rgb = [torch.ones(2, 3), torch.ones(2, 3)]
    ir = [torch.zeros(2, 3), torch.zeros(2, 3)]
    out = counterfactual(
        lambda: rgb[1].sum(), rgb, ir, channel_axes=[0, 1], layers=[1], progress=False
    )
    assert out.rgb[0].isnan().all()
    assert out.rgb[1].tolist() == [-2.0, -2.0, -2.0]
    assert out.ir[1].tolist() == [0.0, 0.0, 0.0]


def test_chosen_rows() -> None:
    rgb, ir = [torch.ones(2, 3), torch.ones(2, 3)], [torch.ones(2, 3), torch.ones(2, 3)]
    rows = torch.tensor([[True, False, False, True], [False, False, True, False]])
    out = counterfactual(lambda: rgb[1].sum() + ir[1].sum(), rgb, ir, rows=rows, progress=False)
    flat = torch.stack([torch.cat(side) for side in out])
    assert torch.equal(flat.isnan(), ~rows)
    assert flat[rows].tolist() == [0.0, -3.0, -3.0]


def test_the_progress_bar(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tqdm")
    counterfactual(lambda: torch.zeros(()), [torch.ones(2, 1)], [torch.ones(2, 1)])
    assert "removing channels" in capsys.readouterr().err
