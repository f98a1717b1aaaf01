"""How well does each estimator of effectiveness order the channels, against Eq. 1 itself?

For a small two-stream classifier with BatchNorm, GroupNorm and no norm, at initialisation and
after one and three epochs: every channel is really removed, and each estimator's scores for the
same batch are compared with what the loss then did. Cost is what a refresh adds to a step, the
median over steps timed in turn.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from ragrad_ext import (
    Effectiveness,
    FiniteDifference,
    FirstOrder,
    Fisher,
    Gate,
    Hutchinson,
    RaGrad,
    audit,
)

from . import crops, record
from .classifier import Classifier

ESTIMATORS: dict[str, Callable[[], Effectiveness]] = {
    "Hutchinson, 1 probe": lambda: Hutchinson(1, every=1),
    "Hutchinson, 16 probes": lambda: Hutchinson(16, every=1),
    "FiniteDifference, 1 probe": lambda: FiniteDifference(1, every=1),
    "FiniteDifference, 1 probe, step 0.01": lambda: FiniteDifference(1, every=1, step=0.01),
    "FiniteDifference, 16 probes": lambda: FiniteDifference(16, every=1),
    "Fisher": lambda: Fisher(every=1),
    "FirstOrder": FirstOrder,
    "Gate": Gate,
}
STAGES = (0, 1, 3)  # epochs trained before the channels are removed
TOP = 0.2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/effectiveness.json"))
    parser.add_argument("--crops", type=Path, help="flir_crops.npz; generated crops besides")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--images", type=int, default=128, help="in the batch that is audited")
    parser.add_argument("--train", type=int, default=4000, help="crops that are trained on")
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for data in ("generated", "flir") if args.crops else ("generated",):
        for norm in ("batch", "group", "none"):
            for seed in range(args.seeds):
                rows += run(data, norm, seed, args)
                print(f"{data}, {norm}, seed {seed}: done", flush=True)
    rows += [cost(norm, args.images) for norm in ("batch", "group", "none")]
    record.write(args.json, "benchmarks.effectiveness", rows)
    print(f"written to {args.json}")


def run(data: str, norm: str, seed: int, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Train one classifier and audit it at every stage."""
    n = args.train + args.images
    images, labels = crops.flir(args.crops, n, seed) if data == "flir" else crops.generated(n, seed)
    held_out = images[: args.images], labels[: args.images]
    model = Classifier(norm, seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for epoch in range(max(STAGES) + 1):
        if epoch in STAGES:
            for name, scores in agreement(model, *held_out).items():
                yield {"data": data, "norm": norm, "seed": seed, "epoch": epoch,
                       "estimator": name, **scores}  # fmt: skip
        order = torch.randperm(args.train, generator=torch.Generator().manual_seed(epoch))
        for batch in (order + args.images).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()


def agreement(model: Classifier, image: Tensor, label: Tensor) -> dict[str, dict[str, float]]:
    """Spearman's rank correlation and top-20 % overlap with Eq. 1, over all rows."""

    def loss() -> Tensor:
        return nn.functional.cross_entropy(model(image), label)

    pairs = RaGrad(model.rgb, model.ir).pairs
    removed = audit.counterfactual(loss, pairs.rgb, pairs.ir, progress=False)
    truth = torch.cat([*removed.rgb, *removed.ir])
    found = {}
    for name, make in ESTIMATORS.items():
        estimate = estimated(model, make(), loss)
        top = [set(x.topk(round(TOP * len(x))).indices.tolist()) for x in (truth, estimate)]
        found[name] = {
            "spearman": float(spearmanr(truth, estimate).statistic),
            "top_overlap": len(top[0] & top[1]) / len(top[0]),
        }
    return found


def estimated(model: Classifier, estimator: Effectiveness, loss: Callable[[], Tensor]) -> Tensor:
    """E of every row of both streams, (2 rows,), by one step that is not taken."""
    buffers = [b.clone() for b in model.buffers()]
    ragrad = RaGrad(model.rgb, model.ir, effectiveness=estimator)
    model.zero_grad()
    ragrad.backward(loss(), closure=loss)
    ragrad.correct_()
    for buffer, before in zip(model.buffers(), buffers, strict=True):
        buffer.copy_(before)
    assert ragrad.repa.effect is not None
    return ragrad.repa.effect.flatten()


def cost(norm: str, images: int, repeats: int = 15) -> dict[str, Any]:
    """What a refresh adds to a step, in steps: (step with it - step with FirstOrder) / plain step.

    A step is forward, backward and correction; FirstOrder needs nothing beyond what these do.
    """
    model = Classifier(norm, 0)
    image, label = crops.generated(images, 0)

    def loss() -> Tensor:
        return nn.functional.cross_entropy(model(image), label)

    def plain() -> None:
        model.zero_grad()
        loss().backward()

    def step(ragrad: RaGrad) -> None:
        model.zero_grad()
        ragrad.backward(loss(), closure=loss)
        ragrad.correct_()

    free = RaGrad(model.rgb, model.ir, effectiveness=FirstOrder())
    added = {}
    for name, make in ESTIMATORS.items():
        ragrad = RaGrad(model.rgb, model.ir, effectiveness=make())
        samples = []
        for _ in range(repeats):
            base, without = timed(plain), timed(lambda: step(free))
            samples.append((timed(lambda ragrad=ragrad: step(ragrad)) - without) / base)  # type: ignore[misc]
        added[name] = statistics.median(samples)
    return {"norm": norm, "images": images, "added_steps": added}


def timed(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
