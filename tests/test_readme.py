"""What README.md shows is what the library does."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks import tables

from .lib.networks import TwoStream

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


class Detector(TwoStream):
    """A model as README.md has it: named backbones, and a loss from (images, targets)."""

    @property
    def rgb_backbone(self) -> nn.Module:
        return self.rgb

    @property
    def ir_backbone(self) -> nn.Module:
        return self.ir

    def forward(self, images: Any, targets: Any = None) -> Tensor:
        if targets is None:
            return super().forward(images, images)
        return nn.functional.cross_entropy(super().forward(images, images), targets)


def environment() -> dict[str, Any]:
    model = Detector()
    labels = torch.tensor([0, 1, 2, 0])
    draw = torch.Generator().manual_seed(0)
    loader = [(torch.randn(4, 3, 8, 8, generator=draw), labels) for _ in range(3)]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return {"model": model, "loader": loader, "optimizer": optimizer}


def block(marker: str) -> str:
    (found,) = [b for b in BLOCKS if marker in b]
    return found


def test_three_lines_and_one_line_do_the_same() -> None:
    three, one = environment(), environment()
    exec(block("for images, targets in loader"), three)
    exec("from ragrad_ext import RaGrad\n" + block(".attach(optimizer)"), one)
    for images, targets in one["loader"]:
        one["optimizer"].zero_grad()
        one["model"](images, targets).backward()
        one["optimizer"].step()
    assert three["ragrad"].last is not None
    for a, b in zip(three["model"].parameters(), one["model"].parameters(), strict=True):
        assert torch.equal(a, b)


def test_correct_on_plain_lists() -> None:
    names = {
        f"{what}_{m}": [torch.randn(4, 3)] for what in ("grads", "weights") for m in ("rgb", "ir")
    }
    names |= {f"r_{m}": [torch.rand(4)] for m in ("rgb", "ir")}
    exec(block("Reliability(r_rgb, r_ir)"), names)


def test_estimators_by_name() -> None:
    import ragrad_ext

    model = TwoStream()
    exec(block("effectiveness=Hutchinson"), vars(ragrad_ext) | {"rgb": model.rgb, "ir": model.ir})


class Numbered(nn.Module):
    """Streams as README.md has them: by infix, and as numbered layers of one Sequential."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Module()
        for token in ("vis", "lwir"):
            self.backbone.add_module(f"{token}_layer1", nn.Sequential(nn.Conv2d(3, 4, 1)))
            self.backbone.add_module(f"bn{token}", nn.BatchNorm2d(4))
        self.backbone.add_module("proj_q_vis_x", nn.Conv2d(4, 4, 1))
        self.model = nn.Sequential(*(nn.Conv2d(3, 3, 1) for _ in range(24)))


def test_pairing_by_rule(capsys: pytest.CaptureFixture[str]) -> None:
    model = Numbered()
    code = block("rules=[")
    found = {"model": model}
    exec(code.replace("ragrad = RaGrad(pairs)", ""), found)
    expected = [
        (f"model.{a}.weight", f"model.{b}.weight") for a, b in ((0, 5), (1, 6), (13, 15), (20, 23))
    ]
    assert found["pairs"].names == expected  # type: ignore[attr-defined]
    assert "paired" in capsys.readouterr().out
    exec("\n".join(code.splitlines()[:4]), found)
    assert found["pairs"].names == [  # type: ignore[attr-defined]
        ("backbone.vis_layer1.0.weight", "backbone.lwir_layer1.0.weight")
    ]


def test_every_table_is_what_its_result_file_says() -> None:
    for page in tables.PAGES:
        text = (ROOT / page).read_text()
        assert tables.BLOCK.search(text)
        assert tables.rewritten(text) == text, f"{page}: run python -m benchmarks.tables"
