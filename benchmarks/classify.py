"""Does a better effectiveness make a better classifier? The same seeds with each estimator.

The small two-stream classifier learns real crops, with the split of their data set; balanced
accuracy on the held-out frames, and on those of night alone, after the last epoch. A seed decides
initial weights and order, and no method draws from them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ragrad_ext import Effectiveness, FirstOrder, Gate, Hutchinson, RaGrad

from . import crops, record
from .classifier import Classifier

METHODS: dict[str, Callable[[], Effectiveness] | None] = {
    "none": None,
    "Gate": Gate,
    "FirstOrder": FirstOrder,
    "Hutchinson, every step": lambda: Hutchinson(1, every=1),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("crops", type=Path, help="flir_crops.npz")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/classify.json"))
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--train", type=int, default=6000, help="crops an epoch, at most")
    args = parser.parse_args()
    train, held_out = crops.split(args.crops)
    train = crops.Crops(*(x[: args.train] for x in train))
    rows: list[dict[str, Any]] = []
    for seed in range(args.seeds):
        rows += [run(method, seed, args.epochs, train, held_out) for method in METHODS]
        print(rows[-len(METHODS) :], flush=True)
        record.write(args.json, "benchmarks.classify", rows)
    print(f"written to {args.json}")


def run(
    method: str, seed: int, epochs: int, train: crops.Crops, held_out: crops.Crops
) -> dict[str, Any]:
    start = time.monotonic()
    model = Classifier("batch", seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    make = METHODS[method]
    ragrad = None if make is None else RaGrad(model.rgb, model.ir, effectiveness=make())
    conflicts = []
    for batch in batches(len(train.labels), epochs, seed):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(train.images[batch]), train.labels[batch])
        if ragrad is None:
            loss.backward()
        else:
            ragrad.backward(loss)
            conflicts.append(ragrad.correct_().fraction())
        optimizer.step()
    model.eval()
    with torch.no_grad():
        right = model(held_out.images).argmax(1) == held_out.labels
    every = torch.ones_like(held_out.night)
    return {
        "method": method, "seed": seed, "epochs": epochs,
        "balanced": balanced(right, held_out.labels, every),
        "night": balanced(right, held_out.labels, held_out.night),
        "conflicts": sum(conflicts) / len(conflicts) if conflicts else None,
        "seconds": time.monotonic() - start,
    }  # fmt: skip


def batches(n: int, epochs: int, seed: int) -> Iterator[Tensor]:
    draw = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        yield from torch.randperm(n, generator=draw).split(64)


def balanced(right: Tensor, labels: Tensor, of: Tensor) -> float:
    """Accuracy within each class, averaged over the classes there are."""
    classes = labels[of].unique()
    return float(torch.stack([right[of & (labels == c)].double().mean() for c in classes]).mean())


if __name__ == "__main__":
    main()
