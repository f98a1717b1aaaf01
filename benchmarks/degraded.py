"""Is measured reliability lower for the stream that is degraded?

Trains the light two-stream FCOS on generated day scenes in which no modality, rgb or ir is
degraded by a known amount, and reads R (Eq. 5) and its factors E^ and S^ (Eq. 3) over training.
Reported for each is P(rgb > ir): the share of pairs of an rgb and an ir channel of one layer in
which rgb scores higher, ties counting half, averaged over layers. If reliability tells the
degraded stream, it falls below that of intact scenes when rgb is degraded and rises when ir is.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ragrad_ext import RaGrad, Repa, correct_
from ragrad_ext.detection.data import Scenes, collate
from ragrad_ext.detection.model import build

from . import record

FACTORS = ("both", "effectiveness", "sensitivity")
DEGRADATIONS = {"none": (0.0, 0.0), "rgb": (0.9, 0.0), "ir": (0.0, 0.9)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/degraded.json"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--scenes", type=int, default=128)
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for degraded in DEGRADATIONS:
        for seed in range(args.seeds):
            for epoch, shares in enumerate(run(degraded, seed, args.epochs, args.scenes), 1):
                rows.append({"degraded": degraded, "seed": seed, "epoch": epoch, **shares})
            print(rows[-1], flush=True)
    record.write(args.json, "benchmarks.degraded", rows)
    print(f"written to {args.json}")


def run(degraded: str, seed: int, epochs: int, scenes: int) -> Iterator[dict[str, float]]:
    """After each epoch: P(rgb > ir) of R, E^ and S^, from the epoch's means."""
    data = Scenes(scenes, seed, conditions=("day",), degradation=DEGRADATIONS[degraded])
    torch.manual_seed(seed)
    model: Any = build("fcos", "light", len(data.classes))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    ragrad = RaGrad(model.backbone.rgb, model.backbone.ir)
    pairs = ragrad.pairs
    repas = {kind: Repa(pairs.rgb, pairs.ir, reliability=kind) for kind in FACTORS}  # type: ignore[arg-type]
    for _ in range(epochs):
        sums = {kind: torch.zeros(2, repa.layout.rows) for kind, repa in repas.items()}
        for batch in torch.randperm(len(data)).split(4):
            images, targets = collate([data[int(i)] for i in batch])
            optimizer.zero_grad()
            loss = torch.stack(list(model(images, targets).values())).sum()
            for repa in repas.values():
                repa.before_backward(loss)
            ragrad.backward(loss)
            for kind, repa in repas.items():
                sums[kind] += observed(repa, pairs.rgb, pairs.ir)
            ragrad.correct_()
            optimizer.step()
        yield {kind: rgb_over_ir(total, repas[kind]) for kind, total in sums.items()}


def observed(repa: Repa, rgb: list[Any], ir: list[Any]) -> Tensor:
    """R of this step, (2, rows), from copies of the gradients, which stay as they are."""
    correct_([p.grad.clone() for p in rgb], [p.grad.clone() for p in ir], repa)
    assert repa.reliability is not None
    return repa.reliability.values


def rgb_over_ir(values: Tensor, repa: Repa) -> float:
    """P(rgb > ir) + P(equal) / 2 over pairs of channels of a layer, averaged over layers."""
    layers = []
    for rows in repa.layout.slices():
        difference = values[0, rows, None] - values[1, None, rows]
        layers.append(((difference > 0).double() + 0.5 * (difference == 0).double()).mean())
    return float(torch.stack(layers).mean())


if __name__ == "__main__":
    main()
