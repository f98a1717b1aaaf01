"""Small models of many names, for the tests of pairing."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from ragrad_ext import Pairs

# Two streams with a fusion between them, and a gate outside, all named by one token.
FUSED = [
    "backbone.conv_vis.weight",
    "backbone.conv_lwir.weight",
    "backbone.fuse.proj_q_vis.weight",
    "backbone.fuse.proj_q_lwir.weight",
    "neck.gate_vis.weight",
    "neck.gate_lwir.weight",
]


def conv(inputs: int = 4, outputs: int = 4, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, bias=bias)


def block() -> Any:
    return nn.Sequential(OrderedDict(conv=conv(bias=False), bn=nn.BatchNorm2d(4)))


def tree(**children: nn.Module) -> Any:
    """A model that only holds modules, by attribute name."""
    model = nn.Module()
    for name, child in children.items():
        model.add_module(name, child)
    return model


def model_of(names: Iterable[str]) -> Any:
    """A model with one weight (4, 4) under each dotted name."""
    model = nn.Module()
    for name in names:
        *path, last = name.split(".")
        module = model
        for part in path:
            if not hasattr(module, part):
                module.add_module(part, nn.Module())
            module = module.get_submodule(part)
        module.register_parameter(last, nn.Parameter(torch.zeros(4, 4)))
    return model


def reasons(pairs: Pairs) -> dict[str, int]:
    """How many were left out for each reason."""
    counts: dict[str, int] = {}
    for record in pairs.left_out:
        counts[record.reason] = counts.get(record.reason, 0) + 1
    return counts


def assert_bound(pairs: Pairs, model: nn.Module) -> None:
    """The lists hold the model's own Parameters, under the names that the pairs state."""
    assert len(pairs) == len(pairs.rgb) == len(pairs.ir) == len(pairs.channel_axes) > 0
    for (rgb, ir), one, two in zip(pairs.names, pairs.rgb, pairs.ir, strict=True):
        assert model.get_parameter(rgb) is one
        assert model.get_parameter(ir) is two
