"""Every example runs, and what it prints is true."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def printed(request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]) -> str:
    """What the example of that name prints as a program; torch's random state comes back."""
    with torch.random.fork_rng():
        runpy.run_path(str(EXAMPLES / request.param), run_name="__main__")
    return capsys.readouterr().out


def example(name: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("printed", [name], indirect=True)


def numbers(pattern: str, text: str) -> list[float]:
    return [float(x) for x in re.findall(pattern, text)]


@example("plain_loop.py")
def test_a_plain_loop_learns_and_corrects(printed: str) -> None:
    losses = numbers(r"loss ([\d.]+)", printed)
    assert len(losses) == 4
    assert losses[-1] < 0.8 * losses[0]
    assert any(numbers(r"([\d.]+)% of rows in conflict", printed))


@example("one_line_attach.py")
def test_an_attached_loop_is_corrected(printed: str) -> None:
    without, with_ = numbers(r"the loss ends at ([\d.]+)", printed)
    assert without != with_  # the same seed: only the correction differs
    assert max(without, with_) < 1.0  # less than log 4, of a guess
    (rows,) = numbers(r"(\d+) rows were in conflict", printed)
    assert rows > 0


@example("yolo_layers.py")
def test_numbered_layers_pair_but_for_the_stems(printed: str) -> None:
    for pair in ("model.1.0.weight | model.4.0.weight", "model.2.0.weight | model.5.0.weight"):
        assert pair in printed.split("left out")[0]
    assert "model.0.0.weight | model.3.0.weight  (8×3×3×3 and 8×1×3×3)" in printed
    (conflicts,) = numbers(r"2 pairs hold 48 rows, (\d+) in conflict", printed)
    assert conflicts > 0


@example("reading_last.py")
def test_the_layers_add_up(printed: str) -> None:
    table = [line.split() for line in printed.splitlines()]
    layers = [line for line in table if line[0].endswith(".weight")]
    (whole,) = [line for line in table if line[0] == "all"]
    assert [sum(int(line[c]) for line in layers) for c in (1, 2)] == [int(n) for n in whole[1:]]
    assert int(whole[2]) > 0
    for _, _, conflicts, cosine, *reliability in layers:
        assert float(cosine) < 0 or conflicts == "0"
        assert all(0 < float(r) < 1 for r in reliability)
    low, high = numbers(r"(0\.\d+)", printed.splitlines()[-1])
    assert 0.5 < low <= high <= 0.7311  # Eq. 10: sigmoid of a share of at most 1


@example("own_rule.py")
def test_a_rule_of_your_own_does_what_it_says(printed: str) -> None:
    changed, rows = numbers(r"(\d+)", printed.splitlines()[0])
    assert 0 < changed < rows == 24
    assert printed.splitlines()[1].endswith("equal: True")


def test_every_example_is_short_and_tested() -> None:
    here = Path(__file__).read_text()
    for path in EXAMPLES.glob("*.py"):
        assert f'@example("{path.name}")' in here
        assert len(path.read_text().splitlines()) < 60, path.name
