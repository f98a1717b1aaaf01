"""What each rule costs, against reading the gradients once, and against TorchJD.

Every backend corrects the same twins by each rule: RaGrad's own by a given reliability, fused and,
as "ragrad, unfused", by the verbs one after the other; PCGrad* and IMTL* row by row. TorchJD's
PCGrad and IMTL-G get what their users would give them: the two gradients of a layer, flattened and
stacked, one call per layer; every layer is then overwritten by half of the sum that they return.

A floor is given for each rule: one read of both gradient lists, and one write of the rows that it
changes.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ragrad_ext import Conflicts, correct_
from ragrad_ext.backends import BACKENDS
from ragrad_ext.rules import RaGradRule, Rule

from . import record, shapes
from .timing import Baseline, Contender, in_turn
from .twins import Twins

SHAPES = ("resnet50", "cspdarknet_l", "convnext_l", "vit_l")
CONFLICTS = 0.1  # of RaGrad's rule; a bit over half of the cosines of the twins are negative
MOST_WEIGHTS = {"reference": 3e7}


def unfused(gram: Tensor, reliability: Tensor, layout: Any) -> Tensor:
    """RaGrad's rule as a function: nothing tells a backend which rule it is."""
    return RaGradRule()(gram, reliability, layout)


RULES: dict[str, Any] = {
    "ragrad": "ragrad",
    "ragrad, unfused": unfused,
    "pcgrad": "pcgrad",
    "imtl": "imtl",
}


def torchjd_aggregators() -> dict[str, Callable[[Tensor], Tensor]]:
    """TorchJD's counterparts of two rules; the package is an extra of this project."""
    from torchjd.aggregation import IMTLG, PCGrad

    return {"pcgrad": PCGrad(), "imtl": IMTLG()}


@torch.no_grad()
def by_torchjd(
    aggregate: Callable[[Tensor], Tensor], rgb: Sequence[Tensor], ir: Sequence[Tensor]
) -> None:
    """One aggregation per layer, as TorchJD's users would call it."""
    for g_rgb, g_ir in zip(rgb, ir, strict=True):
        both = aggregate(torch.stack([g_rgb.flatten().float(), g_ir.flatten().float()])) / 2
        g_rgb.copy_(both.view(g_rgb.shape))
        g_ir.copy_(both.view(g_ir.shape))


def contenders(twins: Twins, rule: str) -> dict[str, Contender]:
    """Who corrects by a rule: every backend, and TorchJD where it has the method."""
    (rgb, ir), restore_ = twins.copy()
    device = rgb[0].device
    found: dict[str, Contender] = {}
    for backend in BACKENDS:
        if backend.unusable(device) is not None or (
            device.type == "cpu" and backend.name == "triton"
        ):
            continue
        if twins.weights > MOST_WEIGHTS.get(backend.name, float("inf")):
            continue
        stats = twins.reliability if rule.startswith("ragrad") else None
        how: Rule | str = RULES[rule]
        call = partial(correct_, rgb, ir, stats, rule=how, backend=backend.name)  # type: ignore[arg-type]
        found[backend.name] = Contender(call, restore_)
    if (aggregate := torchjd_aggregators().get(rule)) is not None:
        found["torchjd"] = Contender(partial(by_torchjd, aggregate, rgb, ir), restore_)
    return found


def changed_elements(twins: Twins, rule: str) -> int:
    """How many elements a rule writes."""
    (rgb, ir), _ = twins.copy()
    before = [g.clone() for g in (*rgb, *ir)]
    found = correct_(rgb, ir, twins.reliability, rule=RULES[rule])
    assert isinstance(found, Conflicts)
    return sum(
        int((g != b).flatten(1).any(1).sum()) * g[0].numel()
        for g, b in zip((*rgb, *ir), before, strict=True)
    )


def measure(
    shape: str, dtype: torch.dtype, device: torch.device, baseline: Baseline, most: int
) -> Iterator[dict[str, Any]]:
    """One row per rule and contender of a shape."""
    twins = Twins(shapes.SHAPES[shape](), CONFLICTS, dtype, device)
    size = twins.rgb[0].element_size()
    for rule in RULES:
        floor = 2 * twins.weights * size + changed_elements(twins, rule) * size
        rivals = contenders(twins, rule)
        for name, samples in in_turn(rivals, {}, baseline, device, most, budget=6.0).items():
            yield {
                "shape": shape,
                "dtype": str(dtype).removeprefix("torch."),
                "rule": rule,
                "backend": name,
                "weights": twins.weights,
                "median_s": samples.median,
                "quartiles_s": samples.quartiles,
                "repeats": len(samples.seconds),
                "floor_bytes": floor,
                "bandwidth": samples.bandwidth,
                "share_of_floor": floor / samples.bandwidth / samples.median,
            }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/rules_cpu.json"))
    parser.add_argument("--shapes", nargs="+", choices=shapes.SHAPES, default=[*SHAPES])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--most", type=int, default=15, help="calls of each contender")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    baseline = Baseline(device)
    rows: list[dict[str, Any]] = []
    for shape in args.shapes:
        for dtype in args.dtypes:
            for row in measure(shape, getattr(torch, dtype), device, baseline, args.most):
                rows.append(row)
                print(line(row), flush=True)
            record.write(args.json, "benchmarks.rules", rows)
    print(f"written to {args.json}")


def line(row: dict[str, Any]) -> str:
    return (
        f"{row['shape']:12} {row['dtype']:8} {row['rule']:16} {row['backend']:10} "
        f"{1e3 * row['median_s']:9.3f} ms, {100 * row['share_of_floor']:5.1f} % of the floor"
    )


if __name__ == "__main__":
    main()
