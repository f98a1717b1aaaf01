"""What docs/adding_an_estimator.md shows works as it says."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from ..lib.networks import TwoStream, assert_near, loss_of, step
from ..lib.tolerances import EFFECT_PLAIN

PAGE = Path(__file__).parents[2] / "docs" / "adding_an_estimator.md"


def test_the_example_measures_what_it_says() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    model = TwoStream()
    names = {"rgb": model.rgb, "ir": model.ir}
    exec(code, names)
    ragrad = names["ragrad"]
    weights = [*ragrad.pairs.rgb, *ragrad.pairs.ir]
    grads = torch.autograd.grad(loss_of(model), weights)
    expected = []
    for w, g in zip(weights, grads, strict=True):
        w, g = w.detach().flatten(1), g.flatten(1)
        expected.append(-(w * g).sum(1) + 0.5 * w.square().sum(1) * g.square().sum(1))
    found = step(ragrad, model, 0)
    assert_near(found.flatten(), torch.cat(expected).double(), EFFECT_PLAIN)
