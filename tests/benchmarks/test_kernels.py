"""The kernel benchmark counts, constructs and compares what it says."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks import agreement, kernel_tables, kernels, peers, plots, shapes, timing
from benchmarks.twins import Twins
from ragrad_ext import correct_
from ragrad_ext.backends import BACKENDS

CPU = torch.device("cpu")
SMALL: list[shapes.Shape] = [(24, 8, 3, 3), (64, 3, 7, 7), (40, 80), (10, 1, 7, 7)]
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])


def test_floor_bytes_of_a_worked_example() -> None:
    # 10 weights a side, 3 of them in weak rows
    assert kernels.floor_bytes("correct", 10, 3, size=4) == 40 + 40 + 12
    assert kernels.floor_bytes("correct", 10, 3, size=2) == 20 + 20 + 6
    # and weights read, history read and written: 4 bytes an element
    assert kernels.floor_bytes("step", 10, 3, size=4) == 2 * (40 + 40 + 40 + 40) + 12
    assert kernels.floor_bytes("step", 10, 3, size=2) == 2 * (20 + 20 + 40 + 40) + 6


@pytest.mark.parametrize(
    ("name", "torchvision_name", "head"),
    [
        ("resnet50", "resnet50", "fc."),
        ("convnext_l", "convnext_large", "classifier."),
        ("vit_l", "vit_l_16", "heads."),
    ],
)
def test_shapes_are_those_of_torchvision(name: str, torchvision_name: str, head: str) -> None:
    models = pytest.importorskip("torchvision.models")
    with torch.device("meta"):
        model: nn.Module = getattr(models, torchvision_name)()
    theirs = [
        tuple(p.shape)
        for path, p in model.named_parameters()
        if path.endswith("weight") and p.ndim >= 2 and not path.startswith(head)
    ]
    assert sorted(theirs) == sorted(shapes.SHAPES[name]())


def test_shapes_of_other_models() -> None:
    # YOLOv5l prints 26,582,912 parameters for layers 0-9, gains and biases of BatchNorm included.
    darknet = shapes.cspdarknet_l()
    assert shapes.count(darknet) + 2 * sum(s[0] for s in darknet) == 26_582_912
    assert shapes.count(shapes.resnet50()) == 23_454_912
    assert shapes.count(shapes.SHAPES["vit_g"]()) == pytest.approx(1e9, rel=0.02)
    sizes = [shapes.count(make()) for make in shapes.LADDER.values()]
    assert sizes == [2**20, 2**22, 2**24, 2**26, 2**28, 2**30]


@DTYPES
@pytest.mark.parametrize("conflicts", kernels.CONFLICTS)
def test_conflicts_are_those_made_and_come_back(conflicts: float, dtype: torch.dtype) -> None:
    twins = Twins(SMALL, conflicts, dtype)
    for _ in range(2):
        found = correct_(twins.rgb, twins.ir, twins.reliability, backend="reference")
        assert torch.equal(found.mask, twins.mask)
        assert found.count() == int(conflicts * 138)
        # a second correction finds none: this is why they must be restored
        again = correct_(twins.rgb, twins.ir, twins.reliability, backend="reference")
        assert again.count() == 0
        assert twins.intact() == (conflicts == 0)
        twins.restore_()
        assert twins.intact()


@DTYPES
@pytest.mark.parametrize("conflicts", [0.0, 0.1, 0.25])
def test_every_step_finds_the_same_conflicts(conflicts: float, dtype: torch.dtype) -> None:
    twins = Twins(SMALL, conflicts, dtype)
    repa = twins.repa()
    for _ in range(4):
        found = correct_(twins.rgb, twins.ir, repa, backend="reference")
        assert torch.equal(found.mask, twins.mask)
        twins.restore_()
        assert twins.intact()


def test_rewritten_elements_are_those_of_the_weak_rows() -> None:
    twins = Twins([(10, 4)], 0.25)  # 2 conflicts of 4 weights
    before = [g.clone() for g in (*twins.rgb, *twins.ir)]
    correct_(twins.rgb, twins.ir, twins.reliability)
    after = (*twins.rgb, *twins.ir)
    changed = sum(int((a != b).sum()) for a, b in zip(before, after, strict=True))
    assert changed == twins.rewritten == 8


def works(twins: Twins, *names: str) -> dict[str, timing.Work]:
    return {name: kernels.contender("correct", name, twins).work for name in names}


@DTYPES
def test_peers_agree_with_the_reference(dtype: torch.dtype) -> None:
    twins = Twins(SMALL, 0.25, dtype)
    compared = works(twins, "loop", "vectorised", "tuned", "foreach")
    agreement.check(compared, works(twins, "reference")["reference"], twins)


@pytest.mark.slow
def test_the_compiled_peer_agrees_too() -> None:
    twins = Twins(SMALL, 0.25)
    agreement.check(works(twins, "compiled"), works(twins, "reference")["reference"], twins)


def every_row_a_little(rgb: Sequence[Tensor], ir: Sequence[Tensor], r: Tensor) -> None:
    peers.tuned(rgb, ir, r)
    for g in (*rgb, *ir):
        g.mul_(1 + 1e-4)


def one_more_row(rgb: Sequence[Tensor], ir: Sequence[Tensor], r: Tensor) -> None:
    mask = r[0] != 0.5
    peers.tuned(rgb, ir, r)
    rgb[0][int((~mask).nonzero()[0])] += 1e-9


def nothing(rgb: Sequence[Tensor], ir: Sequence[Tensor], r: Tensor) -> None:
    pass


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (every_row_a_little, "differs from the reference by"),
        (one_more_row, "wrote to rows"),
        (nothing, "differs from the reference by"),
    ],
)
def test_a_wrong_contestant_is_not_timed(wrong: peers.Correct, message: str) -> None:
    twins = Twins(SMALL, 0.25)
    work: Callable[[], None] = lambda: wrong(twins.rgb, twins.ir, twins.reliability.values)  # noqa: E731
    with pytest.raises(RuntimeError, match=f"wrong {message}"):
        agreement.check({"wrong": work}, works(twins, "reference")["reference"], twins)


def test_pcgrad_projects_whole_gradients() -> None:
    rgb = [torch.tensor([[1.0]]), torch.tensor([[0.0]])]
    ir = [torch.tensor([[-1.0]]), torch.tensor([[1.0]])]
    peers.pcgrad(rgb, ir, torch.zeros(2, 2))
    # (1, 0) . (-1, 1) = -1: each loses its part along the other's original
    assert torch.cat(rgb).flatten().tolist() == [0.5, 0.5]
    assert torch.cat(ir).flatten().tolist() == [0.0, 1.0]


def test_contestants_take_turns_after_restoring() -> None:
    seen: list[str] = []

    def note(what: str) -> timing.Work:
        return lambda: seen.append(what)

    baseline = timing.Baseline.__new__(timing.Baseline)
    baseline.readers = {"slow": (1, note("read")), "fast": (10**9, note("read"))}
    rivals = {n: timing.Contender(note(n), note(f"restore {n}")) for n in "ab"}
    samples = timing.in_turn(rivals, {"a": note("rehearse a")}, baseline, CPU, 2, budget=1.0)
    turn = ["restore a", "read", "read", "rehearse a", "a", "restore b", "read", "read", "b"]
    assert seen[-2 * len(turn) :] == 2 * turn
    assert [len(s.seconds) for s in samples.values()] == [2, 2]
    best = samples["a"].readers["fast"]
    assert samples["a"].bandwidth == sum(best) / 2


def test_slopes_of_known_growth() -> None:
    rows: list[dict[str, Any]] = [
        {"backend": name, "shape": shape, "weights": n, "median_s": 1e-9 * n**power}
        for name, power in (("linear", 1), ("quadratic", 2))
        for shape, n in (("ladder_1M", 2**20), ("ladder_4M", 2**22), ("ladder_16M", 2**24))
    ]
    kernels.add_slopes(rows)
    assert [r.get("slope") for r in rows[::3]] == [None, None]
    assert [r["slope"] for r in rows[1:3]] == pytest.approx([1, 1])
    assert [r["slope"] for r in rows[4:]] == pytest.approx([2, 2])


@pytest.mark.slow
def test_a_quick_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "kernels.json"
    arguments = ["--quick", "--shapes", "ladder_1M", "--threads", "1", "--json", str(path)]
    monkeypatch.setattr("sys.argv", ["kernels", *arguments])
    kernels.main()
    rows = json.loads(path.read_text())["rows"]
    usable = [b.name for b in BACKENDS if b.unusable(CPU) is None]
    assert [r["backend"] for r in rows] == [*usable, "vectorised", "tuned", "foreach", "pcgrad"]
    for row in rows:
        assert row["device"] == "cpu"
        assert row["weights"] == 2**20
        assert row["dtype"] == "float32"
        assert row["conflicts"] == pytest.approx(row["conflicts_found"], abs=1e-3)
        assert row["floor_bytes"] == 2**23 + int(0.1 * 1024) * 1024 * 4
        assert row["share_of_floor"] * row["median_s"] * row["bandwidth"] == pytest.approx(
            row["floor_bytes"]
        )
        assert row["quartiles_s"][0] <= row["median_s"] <= row["quartiles_s"][1]
        assert row["host_us"] > 0


def fake_rows() -> list[dict[str, Any]]:
    """As `kernels` writes them, two contestants, every shape and dtype."""
    rows = []
    for case in kernels.cases([*shapes.SHAPES]):
        for name, slower in (("native", 1), ("vectorised", 12), ("tuned", 4)):
            layers = shapes.SHAPES[case.shape]()
            weights = shapes.count(layers)
            row = {"backend": name, **case._asdict(), "layers": len(layers), "weights": weights}
            row |= {"median_s": slower * weights * 2e-10, "host_us": 35.2, "bandwidth": 4e10}
            row |= {"share_of_floor": 0.9 / slower, "floor_bytes": 8 * weights}
            rows.append(row)
    kernels.add_slopes(rows)
    return rows


def test_tables() -> None:
    rows = fake_rows()
    assert (
        "| PyTorch, vectorised layer by layer | 56.3 ms | 8 % | 1x | 0.33x | 56.3 ms | 8 % |"
        in kernel_tables.contestants(rows).splitlines()
    )
    assert kernel_tables.brief(rows, ["native", "tuned"]).splitlines() == [
        "| | float32 | of the floor's speed | bfloat16 | of the floor's speed |",
        "| --- | --- | --- | --- | --- |",
        "| `native` | 4.69 ms | 90 % | 4.69 ms | 90 % |",
        "| PyTorch, vectorised, conflict rows only | 18.8 ms | 22 % | 18.8 ms | 22 % |",
    ]
    assert (
        "| ResNet-50 | 53 | 23.5 M | bfloat16 "
        "| 4.69 ms, 90 % | 4.69 ms, 90 % | 4.69 ms, 90 % | 4.69 ms, 90 % |"
        in kernel_tables.models(rows, "native").splitlines()
    )
    assert (
        "| 4 Mi | 16 | 0.839 ms, 90 % | 1.000 |"
        in kernel_tables.growth(rows, "native").splitlines()
    )
    assert "| `native` | 35 µs | 35 µs |" in kernel_tables.host(rows).splitlines()


def test_every_contestant_has_a_label() -> None:
    assert kernel_tables.label("native") == "`native`"
    labels = [kernel_tables.label(name) for name in peers.PEERS]
    assert labels == [peer.label for peer in peers.PEERS.values()]
    assert len({*labels}) == len(labels)


def test_the_plot_is_the_same_every_time(tmp_path: Path) -> None:
    pictures = []
    for name in ("a.svg", "b.svg"):
        plots.kernels(fake_rows(), tmp_path / name, "native")
        pictures.append((tmp_path / name).read_bytes())
    assert pictures[0] == pictures[1]
