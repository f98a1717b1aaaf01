"""The measurement of estimators measures what it says. (What came out is in benchmarks/results.)"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ragrad_ext import Effectiveness, audit
from ragrad_ext.backends import RowSums
from ragrad_ext.estimators.research import Removal
from ragrad_ext.rows.bucket import Bucket

pytest.importorskip("torchvision")
pytest.importorskip("scipy")
pytest.importorskip("matplotlib")

from benchmarks import effectiveness, effectiveness_plot, effectiveness_tables
from benchmarks.costs import cost, peak_bytes
from benchmarks.estimators import DOUBLE_BACKWARD, ESTIMATORS, available
from benchmarks.judge import agreement, chosen_rows, estimated
from benchmarks.subjects import NETWORKS, Data, Subject


def subject(name: str = "small-batch") -> Subject:
    torch.manual_seed(0)
    network = NETWORKS[name]
    return network.make(0, network.quick, Data())


class Negated(Removal):
    """Eq. 1 with its sign turned round: the worst there can be."""

    def estimate(self, bucket: Bucket, sums: RowSums) -> Tensor:
        return -super().estimate(bucket, sums)


def test_the_truth_scores_one_and_its_opposite_minus_one() -> None:
    it = subject()
    rows = chosen_rows(it, 60, seed=0)
    assert int(rows.sum()) == 60
    before = [t.clone() for t in (*it.model.parameters(), *it.model.buffers())]
    found = agreement(it, {"truth": Removal, "opposite": Negated}, rows)
    assert found["truth"] == {"spearman": pytest.approx(1), "top_overlap": 1}
    assert found["opposite"] == {"spearman": pytest.approx(-1), "top_overlap": 0}
    after = [*it.model.parameters(), *it.model.buffers()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_all_rows_where_they_are_few_and_other_rows_for_another_seed() -> None:
    it = subject()
    assert chosen_rows(it, 10**6, seed=0).all()
    assert not torch.equal(chosen_rows(it, 9, seed=0), chosen_rows(it, 9, seed=1))


def test_a_loss_repeats_and_a_transformer_has_second_derivatives() -> None:
    """Attention needs the kernel that has them."""
    it = subject("vit")
    assert it.loss().item() == it.loss().item()
    assert estimated(it, ESTIMATORS["Hutchinson, 1 probe"]()).isfinite().all()


@pytest.mark.slow
def test_regions_of_a_detector_are_held_until_it_learns() -> None:
    """Else removing a channel would mostly change which regions the loss is of."""
    it = subject("fasterrcnn")
    first = it.loss().item()
    proposals = it.model.rpn.filter_proposals.result  # type: ignore[union-attr]
    weight = it.rgb.conv1.weight.data  # type: ignore[union-attr]
    old = weight.clone()
    weight.mul_(1.5)
    moved = it.loss().item()
    assert moved != first
    assert it.model.rpn.filter_proposals.result is proposals  # type: ignore[union-attr]
    weight.copy_(old)
    state = torch.get_rng_state()
    assert it.loss().item() == first
    assert torch.equal(torch.get_rng_state(), state)
    it.train()
    it.loss()
    assert it.model.rpn.filter_proposals.result is not proposals  # type: ignore[union-attr]


def test_what_a_network_does_not_allow_is_left_out() -> None:
    names = set(available(double_backward=False, likelihood=False))
    assert names == set(ESTIMATORS) - {*DOUBLE_BACKWARD, "GaussNewtonBartlett, 1 draw"}
    assert set(DOUBLE_BACKWARD) < set(ESTIMATORS)


def test_peak_memory_is_the_most_held_at_once() -> None:
    def work() -> None:
        for n in (1, 3, 2):
            torch.empty(n * 2**20, dtype=torch.uint8)

    assert peak_bytes(subject().model, work) == 3 * 2**20


def test_costs_are_relative_to_a_step() -> None:
    class Forwards(Effectiveness):
        """Three forwards for nothing."""

        def before_backward(self, loss: Tensor, closure: Any = None) -> None:
            for _ in range(3):
                closure()

    found = cost(subject(), {"forwards": Forwards}, repeats=5)
    assert set(found["added_steps"]) == set(found["added_memory"]) == {"forwards"}
    assert found["added_steps"]["forwards"] > 0
    assert found["step_bytes"] > 0


def run(monkeypatch: pytest.MonkeyPatch, path: Path, *networks: str) -> list[dict[str, Any]]:
    arguments = ["effectiveness", "--quick", "--json", str(path), "--networks", *networks]
    monkeypatch.setattr(sys, "argv", arguments)
    effectiveness.main()
    return list(json.loads(path.read_text())["rows"])


def check(rows: list[dict[str, Any]], networks: list[str]) -> None:
    for name in networks:
        mine = [r for r in rows if r["network"] == name]
        scores = [r for r in mine if "spearman" in r]
        assert {r["stage"] for r in scores} == set(effectiveness.STAGES)
        assert all(r["removed"] == 20 for r in scores)
        (price,) = [r for r in mine if "added_steps" in r]
        assert set(price["added_steps"]) == {r["estimator"] for r in scores}
        assert abs(price["added_memory"]["FirstOrder"]) < 0.01


def made_up() -> list[dict[str, Any]]:
    """Two seeds of one network, two estimators, one of which a second network does not allow."""
    rows: list[dict[str, Any]] = []
    for network, names in (("one", ("Gate", "Twice")), ("two", ("Gate",))):
        for name in names:
            for seed in (0, 1):
                rows.append({"network": network, "norm": "batch", "data": "flir", "seed": seed,
                             "stage": "end", "epoch": 3, "removed": 20, "of": 320,
                             "estimator": name, "spearman": 0.5 + 0.2 * seed,
                             "top_overlap": 0.25})  # fmt: skip
        rows.append({"network": network, "images": 8, "added_steps": dict.fromkeys(names, 1.5),
                     "added_memory": dict.fromkeys(names, 0.25),
                     "step_seconds": 0.25, "step_bytes": 3 * 2**20})  # fmt: skip
    return [*rows, {**rows[0], "network": "small-batch", "estimator": "elsewhere"}]


def test_tables_of_networks() -> None:
    rows = made_up()
    assert effectiveness_tables.agreement(rows).splitlines() == [
        "| estimator | one | two | small, BatchNorm |",
        "| --- | --- | --- | --- |",
        "| Gate | 0.60 (0.50 to 0.70) | 0.60 (0.50 to 0.70) |  |",
        "| Twice | 0.60 (0.50 to 0.70) |  |  |",
        "| elsewhere |  |  | 0.50 (0.50 to 0.50) |",
    ]
    assert effectiveness_tables.overlap(rows).splitlines()[2] == "| Gate | 25 % | 25 % |  |"
    assert effectiveness_tables.by_stage(rows).splitlines() == [
        "| estimator | one: end | two: end |",
        "| --- | --- | --- |",
        "| Gate | 0.60 | 0.60 |",
        "| Twice | 0.60 |  |",
    ]
    assert effectiveness_tables.brief(rows[:-1], ["Gate", "Twice"]).splitlines()[2:] == [
        "| Gate | 0.60 | 0.60 | 1.5 steps |",
        "| Twice | 0.60 |  | 1.5 steps |",
    ]
    assert effectiveness_tables.judged(rows).splitlines()[2:] == [
        "| one | flir | 20 of 320 | 8 | 250 ms | 3 MiB |",
        "| two | flir | 20 of 320 | 8 | 250 ms | 3 MiB |",
    ]
    assert effectiveness_tables.price(rows).splitlines()[2:] == [
        "| Gate | +1.50 steps | +25 % | +1.50 steps | +25 % |",
        "| Twice | +1.50 steps | +25 % |  |  |",
    ]


@pytest.mark.slow
def test_the_plot_is_drawn(tmp_path: Path) -> None:
    for name in ("a", "b"):
        effectiveness_plot.frontier(made_up(), tmp_path / f"{name}.svg")
    one, other = ((tmp_path / f"{name}.svg").read_text() for name in ("a", "b"))
    assert "</svg>" in one
    assert one == other


def test_the_frontier_leaves_out_what_a_cheaper_one_equals() -> None:
    added = {"free": 0.05, "dear": 9.0, "poor": 0.05, "equal": 2.0, "best": 4.0}
    scores = {"free": 0.8, "dear": 0.85, "poor": 0.7, "equal": 0.8, "best": 0.9}
    assert effectiveness_plot.frontier_of(added, scores) == ["free", "best"]


def test_names_in_the_plot_do_not_hide_one_another() -> None:
    added = {"far": 0.1, "high": 10.0, "low": 12.0, "lowest": 12.0}
    scores = {"far": 0.5, "high": 0.5, "low": 0.49, "lowest": 0.2}
    line = effectiveness_plot.LINE
    assert effectiveness_plot.label_heights(added, scores) == {
        "far": 0.5, "high": 0.5, "low": 0.5 - line, "lowest": 0.2
    }  # fmt: skip


@pytest.mark.slow
def test_a_run_to_try_of_every_estimator(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    check(run(monkeypatch, tmp_path / "r.json", "small-batch"), ["small-batch"])


@pytest.mark.slow
def test_a_run_to_try_of_every_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With one estimator of each kind, where a network allows it."""
    kinds = "FirstOrder", "Gate", "Hutchinson, 1 probe", "GaussNewtonBartlett, 1 draw"

    def few(**how: bool) -> dict[str, Any]:
        return {name: make for name, make in available(**how).items() if name in kinds}

    monkeypatch.setattr(effectiveness, "available", few)
    others = [name for name in NETWORKS if name != "small-batch"]
    check(run(monkeypatch, tmp_path / "r.json", *others), others)


@pytest.mark.slow
def test_the_audit_is_the_librarys() -> None:
    """The rows that are judged are the rows that `audit.counterfactual` removes."""
    it = subject()
    rows = chosen_rows(it, 5, seed=3)
    effect = estimated(it, Removal())
    pairs = [[p for p in s.parameters() if p.ndim > 1] for s in (it.rgb, it.ir)]
    removed = audit.counterfactual(it.loss, *pairs, rows=rows, progress=False)
    truth = torch.stack([torch.cat(side) for side in removed])
    assert torch.equal(truth[rows], effect[rows])
