"""The benchmarks that train measure what they say. (What came out is in benchmarks/results.)"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("torchvision")
pytest.importorskip("scipy")

from benchmarks import classify, crops, degraded, overhead, training_tables
from benchmarks.degradations import CHANNELS, KINDS, Degraded, blurred, dimmed, dropped, shifted
from ragrad_ext.detection.data.datasets import Scenes

SIZE = (96, 96)


def image() -> torch.Tensor:
    return torch.rand(3, 40, 50, generator=torch.Generator().manual_seed(0))


def test_what_is_taken_away() -> None:
    x = image()
    assert len((dimmed(x) * 255).round().unique()) <= 14
    assert torch.allclose(dimmed(x).mean(), x.mean() / 20, rtol=0.01)
    assert blurred(x).std() < 0.2 * x.std()
    assert torch.allclose(blurred(x).mean(), x.mean(), rtol=0.02)
    assert torch.equal(shifted(x)[:, 4:, 5:], x[:, :-4, :-5])
    assert dropped(x).count_nonzero() == 0


@pytest.mark.parametrize("modality", CHANNELS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_other_modality_and_the_boxes_stay(kind: str, modality: str) -> None:
    data = Scenes(3, size=SIZE)
    found = Degraded(data, 2, kind, modality)
    assert len(found) == 2
    (other,) = set(CHANNELS) - {modality}
    (new, target), (old, before) = found[1], data[1]
    assert torch.equal(new[CHANNELS[other]], old[CHANNELS[other]])
    assert not torch.equal(new[CHANNELS[modality]], old[CHANNELS[modality]])
    assert torch.equal(target["boxes"], before["boxes"])
    assert torch.equal(Degraded(data, 2)[1][0], old)


def test_auc_by_hand() -> None:
    """rgb 1, 2 against ir 0, 2: above 3 of 4 pairs, but for one tie."""
    p = degraded.rgb_over_ir(torch.tensor([[1.0, 2.0], [0.0, 2.0]]))
    assert p == (1 + 0 + 1 + 0.5) / 4
    for modality, auc in (("rgb", 1 - p), ("ir", p)):
        row = degraded.row("sudden", "scenes", "noise", modality, 1, {"both": [p]})
        assert row["auc"] == {"both": [auc]}


@pytest.mark.slow
def test_to_be_shown_degraded_images_changes_nothing() -> None:
    run = degraded.Run(Scenes(8, size=SIZE), seed=0)
    run.epoch()
    before = [t.clone() for t in (*run.model.parameters(), *run.model.buffers())]
    states = [repa.state_dict() for repa in run.repas.values()]
    dark = Degraded(run.data, 8, "dropped", "rgb")
    found = run.show(dark, batches=2)
    assert set(found) == {*degraded.FACTORS, "effectiveness, Eq. 2"}
    assert all(len(layers) == 10 for layers in found.values())
    assert found == run.show(dark, batches=2)
    assert found != run.show(run.data, batches=2)
    after = [*run.model.parameters(), *run.model.buffers()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    for repa, state in zip(run.repas.values(), states, strict=True):
        assert torch.equal(repa.state_dict()["sensitivity"], state["sensitivity"])
        assert torch.equal(repa.state_dict()["steps"], state["steps"])


def test_balanced_accuracy_by_hand() -> None:
    right = torch.tensor([True, True, False, True, False])
    labels = torch.tensor([0, 0, 0, 1, 2])
    assert classify.balanced(right, labels, torch.ones(5, dtype=torch.bool)) == pytest.approx(5 / 9)
    assert classify.balanced(right, labels, torch.tensor([1, 1, 1, 1, 0]).bool()) == (
        pytest.approx((2 / 3 + 1) / 2)
    )


def test_a_seed_decides_a_run(tmp_path: Any) -> None:
    n = 150
    draw = np.random.default_rng(0)
    np.savez(
        tmp_path / "crops.npz",
        rgb=draw.integers(0, 255, (n, 32, 32, 3), np.uint8),
        ir=draw.integers(0, 255, (n, 32, 32), np.uint8),
        label=np.arange(n) % 3, night=np.arange(n) % 2, val=np.arange(n) < 50,
    )  # fmt: skip
    train, held_out = crops.split(tmp_path / "crops.npz")
    assert (len(train.labels), len(held_out.labels)) == (100, 50)
    assert torch.equal(held_out.labels, torch.arange(50) % 3)
    rows = [classify.run(m, 3, 1, train, held_out) for m in ("none", "none", "Gate")]
    plain, again, gate = ({k: v for k, v in r.items() if k != "seconds"} for r in rows)
    assert plain == again
    assert plain["conflicts"] is None
    assert 0 < gate["conflicts"] < 1


@pytest.mark.slow
@pytest.mark.parametrize("norm", overhead.NORMS)
def test_the_history_is_what_takes_memory(norm: str) -> None:
    rows = overhead.overhead("light", norm, 1, SIZE, rounds=1)
    assert [r["contestant"] for r in rows] == list(overhead.CONTESTANTS)
    full, half, none = (r["added_memory"] * r["step_bytes"] for r in rows)
    weights = 2 * 4 * sum(o * i * 9 for o, i in zip(WIDTHS, INPUTS, strict=True))
    assert full - none == pytest.approx(weights, rel=0.1)
    assert half - none == pytest.approx(weights / 2, rel=0.2)


WIDTHS = (16, 16, 32, 32, 64, 64, 128, 128, 128, 128)  # of the light backbone
INPUTS = (3, 16, 16, 32, 32, 64, 64, 128, 128, 128)


def test_tables_by_hand() -> None:
    rows: list[dict[str, Any]] = [
        {"setting": "sudden", "data": "msrs", "kind": "dimmed", "degraded": modality,
         "seed": seed, "epoch": epoch,
         "auc": {"both": [0.5, 0.6, 0.7], "effectiveness": [0.5 + 0.1 * seed] * 3,
                 "sensitivity": [0.2, 0.4, 0.9]}}
        for modality in ("rgb", "ir") for seed in (0, 1) for epoch in (1, 2)
    ]  # fmt: skip
    table = training_tables.degraded(rows).splitlines()
    assert table[0].endswith("| R | E^ | S^ | E^ by Eq. 2 |")
    assert table[2:] == [
        "| sudden | msrs | dimmed | 0.60 (0.60 to 0.60) | 0.55 (0.50 to 0.60) "
        "| 0.50 (0.50 to 0.50) |  |"
    ]
    depth = training_tables.degraded_by_depth(rows).splitlines()
    assert depth[2:] == [
        f"| sudden | msrs | {epoch} | 0.55 | 0.55 | 0.55 | 0.20 | 0.40 | 0.90 |" for epoch in (1, 2)
    ]
    rows = [
        {"method": m, "seed": s, "balanced": 0.5 + gain + 0.1 * s, "night": 0.5}
        for m, gain in (("none", 0.0), ("Gate", 0.01)) for s in (0, 1)
    ]  # fmt: skip
    assert training_tables.classify(rows).splitlines()[2:] == [
        "| no correction | 55.00 ± 7.07 |  | 50.00 ± 0.00 |  |",
        "| Gate | 56.00 ± 7.07 | +1.00 (+1.00 to +1.00) | 50.00 ± 0.00 | +0.00 (+0.00 to +0.00) |",
    ]
    ap = {"none": (0.10, 0.20), "Gate": (0.11, 0.21), "paper": (0.13, 0.19)}
    runs = {
        name: [
            {"seed": s, "loss": [9, 1 + s], "ap": {"overall": {"AP": a, "AP50": 0.5, "AP75": a}}}
            for s, a in enumerate(values)
        ]
        for name, values in ap.items()
    }
    same = "50.00 ± 0.00"
    assert training_tables.average_precision(runs["none"], runs["paper"]).splitlines()[2:] == [
        # t(0.975, 1) = 12.706; the differences are 3 and -1, s / sqrt(2) = 2
        "| overall | AP | 15.00 ± 7.07 | 16.00 ± 4.24 | +1.00 | -24.41 to +26.41 |",
        f"| overall | AP50 | {same} | {same} | +0.00 | +0.00 to +0.00 |",
        "| overall | AP75 | 15.00 ± 7.07 | 16.00 ± 4.24 | +1.00 | -24.41 to +26.41 |",
    ]
    none = "+0.00 (+0.00 to +0.00)"
    assert training_tables.variants(runs).splitlines() == [
        "| | seeds | AP | difference to none | difference to Gate | AP50 | difference to none "
        "| difference to Gate "
        "| training loss at the end |",
        "| --- " * 9 + "|",
        f"| none | 2 | 15.00 ± 7.07 |  |  | {same} |  |  | 1.500 ± 0.707 |",
        f"| Gate | 2 | 16.00 ± 7.07 | +1.00 (+1.00 to +1.00) |  | {same} | {none} |  "
        "| 1.500 ± 0.707 |",
        "| paper | 2 | 16.00 ± 4.24 | +1.00 (-24.41 to +26.41) | +0.00 (-25.41 to +25.41) "
        f"| {same} | {none} | {none} | 1.500 ± 0.707 |",
    ]
    assert training_tables.variants_brief(runs, ["none", "paper"]).splitlines() == [
        "| | seeds | AP | difference to none | AP50 | difference to none |",
        "| --- " * 6 + "|",
        f"| none | 2 | 15.00 ± 7.07 |  | {same} |  |",
        f"| paper | 2 | 16.00 ± 4.24 | +1.00 (-24.41 to +26.41) | {same} | {none} |",
    ]
    rows = [
        {"norm": "frozen", "images": 8, "size": [384, 288], "contestant": "RaGrad",
         "step_seconds": 2.04, "step_bytes": 3 * 2**30, "own_time": 0.0123,
         "rounds": [-0.02, 0.0, 0.04], "added_memory": 0.03}
    ]  # fmt: skip
    assert training_tables.overhead(rows).splitlines() == [
        "| BatchNorm | images | a plain step | RaGrad: time | memory |",
        "| --- | --- | --- | --- | --- |",
        "| frozen | 8 of 384 x 288 | 2.0 s, 3.0 GiB | 1.23 %; -2 to +4 % | +3.0 % |",
    ]
