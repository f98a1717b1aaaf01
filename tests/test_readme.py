"""What the pages say is what the library does: code runs, tables, signatures and links are true."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from string import Template
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ragrad_ext
from benchmarks import tables
from ragrad_ext.detection.cli import add_commands

from .lib import api_page
from .lib.networks import TwoStream

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    str(p.relative_to(ROOT)) for folder in (ROOT, ROOT / "docs") for p in folder.glob("*.md")
)
# Every block of a page is run, except after <!-- not run: the reason -->.
CODE = re.compile(r"(<!-- not run: [^\n]+ -->\n)?```python\n(.*?)```", re.DOTALL)
WITH_CODE = [page for page in PAGES if CODE.search((ROOT / page).read_text())]


class Detector(nn.Module):
    """A model as the pages have it, whatever the arrangement of its streams."""

    def __init__(self) -> None:
        super().__init__()
        two = TwoStream()
        self.rgb_backbone, self.ir_backbone, self.head = two.rgb, two.ir, two.head
        self.backbone = nn.Module()  # streams by infix
        for token in ("vis", "lwir"):
            self.backbone.add_module(f"{token}_layer1", nn.Sequential(nn.Conv2d(3, 4, 1)))
            self.backbone.add_module(f"bn{token}", nn.BatchNorm2d(4))
        self.backbone.add_module("proj_q_vis_x", nn.Conv2d(4, 4, 1))
        self.model = nn.Sequential(*(nn.Conv2d(3, 3, 1) for _ in range(24)))  # numbered layers

    def forward(self, images: Tensor, targets: Tensor | None = None) -> Tensor:
        features = self.rgb_backbone(images) + self.ir_backbone(images)
        output: Tensor = self.head(features.flatten(1))
        return output if targets is None else nn.functional.cross_entropy(output, targets)


def environment() -> dict[str, Any]:
    """What the code of a page finds: a model, its data, and lists of gradients."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Detector()
    labels = torch.tensor([0, 1, 2, 0])
    draw = torch.Generator().manual_seed(0)
    loader = [(torch.randn(4, 3, 8, 8, generator=draw), labels) for _ in range(3)]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    found = {"model": model, "loader": loader, "optimizer": optimizer}
    for modality in ("rgb", "ir"):
        for what in ("grads", "weights"):
            found[f"{what}_{modality}"] = [torch.randn(4, 3, generator=draw)]
        found[f"r_{modality}"] = [torch.rand(4, generator=draw)]
    found |= {"rgb": model.rgb_backbone, "ir": model.ir_backbone}
    return {"torch": torch, "device": "cpu", "batch": loader[0][0], **found}


def blocks(page: str) -> Iterator[str]:
    """The code of a page that can run."""
    for reason, code in CODE.findall((ROOT / page).read_text()):
        if not reason:
            yield code


def block(page: str, marker: str) -> str:
    (found,) = [b for b in blocks(page) if marker in b]
    return found


@pytest.mark.parametrize("page", WITH_CODE)
@pytest.mark.filterwarnings("ignore::UserWarning:torch")  # autocast, where there is no GPU
def test_every_block_of_a_page_runs(page: str) -> None:
    found = environment()
    for code in blocks(page):
        exec(compile(code, page, "exec"), found)


def test_three_lines_and_one_line_do_the_same() -> None:
    three, one = environment(), environment()
    exec(block("README.md", "for images, targets in loader"), three)
    exec("from ragrad_ext import RaGrad\n" + block("README.md", ".attach(optimizer)"), one)
    for images, targets in one["loader"]:
        one["optimizer"].zero_grad()
        one["model"](images, targets).backward()
        one["optimizer"].step()
    assert three["ragrad"].last is not None
    for a, b in zip(three["model"].parameters(), one["model"].parameters(), strict=True):
        assert torch.equal(a, b)


def test_pairing_by_rule(capsys: pytest.CaptureFixture[str]) -> None:
    code = block("docs/training_loops.md", "rules=[")
    found = environment()
    exec(code, found)
    expected = [
        (f"model.{a}.weight", f"model.{b}.weight") for a, b in ((0, 5), (1, 6), (13, 15), (20, 23))
    ]
    assert found["pairs"].names == expected
    assert "paired" in capsys.readouterr().out
    exec(code.split("\n\n# YOLO")[0], found)
    assert found["pairs"].names == [
        ("backbone.vis_layer1.0.weight", "backbone.lwir_layer1.0.weight")
    ]


def test_every_table_is_what_its_result_file_says() -> None:
    for page in PAGES:
        text = (ROOT / page).read_text()
        assert (page in tables.PAGES) == bool(tables.BLOCK.search(text)), page
        assert tables.rewritten(text) == text, f"{page}: run python -m benchmarks.tables"


def test_every_public_name_has_a_section_and_its_true_signature() -> None:
    text = api_page.PAGE.read_text()
    assert api_page.rewritten(text) == text, "run python -m tests.lib.api_page"
    shown = [name for _, name, _ in api_page.BLOCK.findall(text)]
    assert sorted(shown) == sorted(api_page.called())
    sections = re.findall(r"^### `(\w+)`$", text, re.MULTILINE)
    missing = {*ragrad_ext.__all__, *api_page.called()} - {*sections}
    assert not missing, f"docs/api.md has no section for {', '.join(sorted(missing))}"
    unnamed = [name for name in api_page.public() if not re.search(rf"`{name}\b", text)]
    assert not unnamed, f"docs/api.md does not name {', '.join(unnamed)}"


def commands(page: str) -> Iterator[list[str]]:
    """The arguments of every ``python -m`` of a page, with its shell variables filled in."""
    fences = re.findall(
        r"^```(\w*)\n(.*?)^```$", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE
    )
    shell = "\n".join(block for language, block in fences if not language)
    lines = shell.replace("\\\n", " ").splitlines()
    variables = dict(re.findall(r'^(\w+)="?([^"\n]+)"?$', "\n".join(lines), re.MULTILINE))
    for line in lines:
        if line.startswith("python -m "):
            filled = Template(line).substitute(variables).replace("...", "")
            yield shlex.split(filled, comments=True)[2:]


@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_a_page_is_understood(page: str) -> None:
    parser = argparse.ArgumentParser()
    subparsers = parser.add_subparsers()
    subparsers.add_parser("doctor")
    add_commands(subparsers)
    for module, *arguments in commands(page):
        assert find_spec(module), f"{page}: there is no module {module}"
        if module == "ragrad_ext":
            parser.parse_args(arguments)  # exits, and says why


def anchors(text: str) -> set[str]:
    """The headings of a page as GitHub links to them."""
    titles = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title).strip().lower().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page: str) -> None:
    here = ROOT / page
    prose = re.sub(r"```.*?```", "", here.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        there = here.parent / path if path else here
        assert there.exists(), f"{page} links to {target}, which does not exist"
        if anchor:
            assert anchor in anchors(there.read_text()), (
                f"{page} links to {target}: no such heading"
            )


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) < 150


def test_every_file_that_a_page_names_exists() -> None:
    files = [p.relative_to(ROOT).as_posix() for p in ROOT.rglob("*") if ".venv" not in p.parts]
    for page in PAGES:
        prose = re.sub(r"```.*?```", "", (ROOT / page).read_text(), flags=re.DOTALL)
        for name in re.findall(r"`([\w./]+\.(?:py|cpp|h|cu|cuh|sh|md|svg))`", prose):
            assert any(f"/{f}".endswith(f"/{name}") for f in files), f"{page} names {name}"
