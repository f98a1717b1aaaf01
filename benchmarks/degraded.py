"""Does measured reliability tell the stream that is degraded?

A light two-stream FCOS learns generated day scenes, or real pairs. In the *lasting* setting one
modality is degraded from the first step on. In the *sudden* one the network learns intact pairs,
and after some epochs is shown batches of which one modality is degraded; it takes no step on them.

R (Eq. 5) and its factors E^ and S^ (Eq. 3) are averaged over an epoch, or over the batches shown.
Each layer gives P(intact > degraded): the share of pairs of a channel of the intact and one of the
degraded stream in which the intact one scores higher, ties counting half. That is the AUC of the
score at telling the degraded stream: 1 if it always does, 0.5 if it says nothing. Averaged over
the modality that is degraded, what one modality has beyond the other cancels out.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ragrad_ext import Hutchinson, Pairs, RaGrad, Repa, correct_
from ragrad_ext.detection.data.datasets import PairedImages, Scenes, collate, open_data
from ragrad_ext.detection.models.two_stream import build

from . import record
from .degradations import CHANNELS, KINDS, Degraded

FACTORS = ("both", "effectiveness", "sensitivity")
GENERATED = {"": (0.0, 0.0), "rgb": (0.9, 0.0), "ir": (0.0, 0.9)}
BATCH = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/degraded.json"))
    parser.add_argument("--pairs", type=Path, help="folder of image pairs; only scenes without")
    parser.add_argument("--labels", help="which labels of that folder")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--images", type=int, default=128, help="an epoch")
    parser.add_argument("--shown", type=int, default=8, help="degraded batches, where sudden")
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for seed in range(args.seeds):
        for row in measured(args, seed):
            rows.append({"seed": seed, **row})
            if row["epoch"] == args.epochs:
                print({k: v for k, v in rows[-1].items() if k != "auc"}, flush=True)
        record.write(args.json, "benchmarks.degraded", rows)
    print(f"written to {args.json}")


def measured(args: argparse.Namespace, seed: int) -> Iterator[dict[str, Any]]:
    """All rows of one seed."""
    for modality in CHANNELS:
        scenes = Scenes(args.images, seed, conditions=("day",), degradation=GENERATED[modality])
        for epoch, found in lasting(scenes, seed, args.epochs):
            yield row("lasting", "scenes", "noise", modality, epoch, found)
    intact = Scenes(args.images, seed, conditions=("day",), degradation=GENERATED[""])
    others: dict[tuple[str, str], PairedImages] = {
        ("noise", modality): Scenes(
            args.images, seed, conditions=("day",), degradation=GENERATED[modality]
        )
        for modality in CHANNELS
    }
    for epoch, kind, modality, found in sudden(intact, others, seed, args.epochs, args.shown):
        yield row("sudden", "scenes", kind, modality, epoch, found)
    if args.pairs is None:
        return
    pairs = open_data(args.pairs, "train", labels=args.labels)
    name = args.pairs.name
    others = {(k, m): Degraded(pairs, args.images, k, m) for k in KINDS for m in CHANNELS}
    for epoch, kind, modality, found in sudden(
        Degraded(pairs, args.images), others, seed, args.epochs, args.shown
    ):
        yield row("sudden", name, kind, modality, epoch, found)
    for (kind, modality), data in others.items():
        for epoch, found in lasting(data, seed, args.epochs):
            yield row("lasting", name, kind, modality, epoch, found)


Scores = Mapping[str, list[float]]  # P(rgb > ir) by factor and layer


def row(
    setting: str, data: str, kind: str, degraded: str, epoch: int, found: Scores
) -> dict[str, Any]:
    """``auc``, by factor and layer, from P(rgb > ir)."""
    auc = {n: [p if degraded == "ir" else 1 - p for p in ps] for n, ps in found.items()}
    return {"setting": setting, "data": data, "kind": kind, "degraded": degraded,
            "epoch": epoch, "auc": auc}  # fmt: skip


class Run:
    """A detector in training, corrected by RaGrad, and one `Repa` per factor that looks on."""

    def __init__(self, data: PairedImages, seed: int) -> None:
        torch.manual_seed(seed)
        model: Any = build("fcos", "light", len(data.classes))
        self.data, self.model = data, model
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        self.ragrad = RaGrad(model.backbone.rgb, model.backbone.ir)
        self.repas = {kind: self.repa(factors=kind) for kind in FACTORS}

    def repa(self, **how: Any) -> Repa:
        return Repa(self.ragrad.pairs.rgb, self.ragrad.pairs.ir, **how)

    def epoch(self) -> dict[str, list[float]]:
        """Train on every pair once."""
        seen = Means(self.repas, self.ragrad.pairs)
        for batch in torch.randperm(len(self.data)).split(BATCH):
            self.optimizer.zero_grad()
            loss = self.loss(self.data, batch)
            seen.before(loss)
            self.ragrad.backward(loss)
            seen.after()
            self.ragrad.correct_()
            self.optimizer.step()
        return seen.rgb_over_ir()

    def show(self, data: PairedImages, batches: int) -> dict[str, list[float]]:
        """Look at other images, of which nothing is kept: no weight and no statistic changes."""
        states = {name: repa.state_dict() for name, repa in self.repas.items()}
        buffers = [b.clone() for b in self.model.buffers()]
        paper = self.repa(factors="effectiveness", effectiveness=Hutchinson(1, every=1))
        seen = Means({**self.repas, "effectiveness, Eq. 2": paper}, self.ragrad.pairs)
        for batch in torch.arange(len(data)).split(BATCH)[:batches]:
            self.optimizer.zero_grad()
            loss = self.loss(data, batch)
            seen.before(loss)
            loss.backward()
            seen.after()
        for name, repa in self.repas.items():
            repa.load_state_dict(states[name])
        for buffer, before in zip(self.model.buffers(), buffers, strict=True):
            buffer.copy_(before)
        return seen.rgb_over_ir()

    def loss(self, data: PairedImages, batch: Tensor) -> Tensor:
        images, targets = collate([data[int(i)] for i in batch])
        return torch.stack(list(self.model(images, targets).values())).sum()


class Means:
    """R of several `Repa`, averaged over steps."""

    def __init__(self, repas: Mapping[str, Repa], pairs: Pairs) -> None:
        self.repas, self.streams = repas, (pairs.rgb, pairs.ir)
        self.sums = {name: torch.zeros(2, repa.layout.rows) for name, repa in repas.items()}

    def before(self, loss: Tensor) -> None:
        for repa in self.repas.values():
            repa.before_backward(loss)

    def after(self) -> None:
        """Observe the gradients, which stay as they are."""
        for name, repa in self.repas.items():
            rgb, ir = ([clone(p.grad) for p in side] for side in self.streams)
            correct_(rgb, ir, repa)
            assert repa.reliability is not None
            self.sums[name] += repa.reliability.values

    def rgb_over_ir(self) -> dict[str, list[float]]:
        """P(rgb > ir) + P(equal) / 2 over pairs of channels, by name and layer."""
        return {
            name: [rgb_over_ir(values[:, rows]) for rows in self.repas[name].layout.slices()]
            for name, values in self.sums.items()
        }


def rgb_over_ir(values: Tensor) -> float:
    """Of the (2, C) scores of one layer."""
    difference = values[0, :, None] - values[1, None, :]
    return float(((difference > 0).double() + 0.5 * (difference == 0).double()).mean())


def clone(gradient: Tensor | None) -> Tensor | None:
    return None if gradient is None else gradient.clone()


def lasting(data: PairedImages, seed: int, epochs: int) -> Iterator[tuple[int, Scores]]:
    run = Run(data, seed)
    for epoch in range(1, epochs + 1):
        yield epoch, run.epoch()


def sudden(
    intact: PairedImages,
    others: Mapping[tuple[str, str], PairedImages],
    seed: int,
    epochs: int,
    batches: int,
) -> Iterator[tuple[int, str, str, Scores]]:
    """At the first, the middle and the last epoch: each of ``others`` in turn."""
    run = Run(intact, seed)
    for epoch in range(1, epochs + 1):
        run.epoch()
        if epoch in (1, (epochs + 1) // 2, epochs):
            for (kind, modality), data in others.items():
                yield epoch, kind, modality, run.show(data, batches)


if __name__ == "__main__":
    main()
