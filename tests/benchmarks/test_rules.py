"""The benchmark of rules: its contenders do what it says, and its tables what was measured."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks import rule_tables, rules, versus
from benchmarks.twins import Twins
from ragrad_ext import compiled
from ragrad_ext.rules.pcgrad import PCGrad

SHAPES = [(16, 4, 3, 3), (8, 32)]


def test_torchjd_sums_what_pcgrad_makes_of_whole_layers() -> None:
    """One row per layer: then PCGrad* and TorchJD's PCGrad project the same vectors."""
    torch.manual_seed(0)
    twins = Twins([(1, 64), (1, 200)], 0.5)
    (rgb, ir), _ = twins.copy()
    rules.by_torchjd(rules.torchjd_aggregators()["pcgrad"], rgb, ir)
    for l, (a, b) in enumerate(zip(twins.rgb, twins.ir, strict=True)):
        gram = torch.stack([(a * a).sum(), (b * b).sum(), (a * b).sum()])[None].double()
        (mix,) = PCGrad()(gram, None, twins.reliability.layout)
        both = mix.sum(0) / 2
        expected = both[0] * a + both[1] * b
        torch.testing.assert_close(rgb[l], expected.float())
        torch.testing.assert_close(ir[l], expected.float())


@pytest.mark.parametrize("rule", rules.RULES)
def test_every_backend_contends_and_torchjd_where_it_has_the_method(rule: str) -> None:
    twins = Twins(SHAPES, 0.25)
    names = set(rules.contenders(twins, rule))
    expected = {"reference"} | ({"native"} if compiled.module is not None else set())
    assert names == expected | ({"torchjd"} if rule in ("pcgrad", "imtl") else set())


def test_how_much_a_rule_writes() -> None:
    twins = Twins(SHAPES, 0.25)
    assert rules.changed_elements(twins, "ragrad") == twins.rewritten
    assert rules.changed_elements(twins, "ragrad, unfused") == twins.rewritten
    everything = 2 * twins.weights
    assert twins.rewritten < rules.changed_elements(twins, "pcgrad") < everything
    assert rules.changed_elements(twins, "imtl") == everything


def row(rule: str, backend: str, dtype: str, seconds: float) -> dict[str, Any]:
    return {
        "shape": "resnet50", "rule": rule, "backend": backend, "dtype": dtype,
        "median_s": seconds, "share_of_floor": 0.5,
    }  # fmt: skip


def test_the_table_of_rules() -> None:
    rows = [
        row(rule, backend, dtype, seconds)
        for dtype in ("float32", "bfloat16")
        for rule in rule_tables.LABELS
        for backend, seconds in (("native", 0.008), ("torchjd", 0.16))
        if backend == "native" or rule in ("pcgrad", "imtl")
    ]
    lines = rule_tables.rules(rows).splitlines()
    assert len(lines) == 2 + len(rule_tables.LABELS)
    assert lines[2].startswith("| ResNet-50 | RaGrad, fused | 8.00 ms | 50 % |  |  | 8.00 ms |")
    assert lines[4].startswith("| ResNet-50 | PCGrad* | 8.00 ms | 50 % | 160 ms | 20x |")


def test_the_table_of_two_versions() -> None:
    rows = [
        {"kind": "correct", "shape": shape, "median_of_ratios": ratio}
        for shape, ratio in (("resnet50", 0.9), ("vit_l", 1.1), ("tiny_53", 1.0))
    ]
    assert rule_tables.versus(rows).splitlines()[2:] == [
        "| correct | models | 2 | 1.000 | 0.900 | 1.100 |",
        "| correct | tiny | 1 | 1.000 | 1.000 | 1.000 |",
    ]


@pytest.mark.slow
def test_a_checkout_against_itself(capsys: pytest.CaptureFixture[str]) -> None:
    workers = [versus.Worker(versus.HERE, "reference", 1) for _ in range(2)]
    found = versus.compare(("correct", "tiny_53", "float32", 0.0), workers, pairs=4)
    assert found["pairs"] == 4
    assert found["earlier_s"] > 0
    assert found["ratio_of_medians"] == found["this_s"] / found["earlier_s"]
    for worker in workers:
        worker.process.kill()
        worker.process.communicate()
