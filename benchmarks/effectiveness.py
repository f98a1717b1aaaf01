"""How well does each estimator of effectiveness order the channels, against Eq. 1 itself?

For two-stream networks, at initialisation, in the middle and at the end of a short training:
channels are really removed, and each estimator's scores for the same batch are compared with what
the loss then did. Where all rows are too many for the time that a network is given, a random
sample of them is removed; each result says how many of how many. Cost is what a refresh adds to a
step, in time and in peak memory, all estimators in turn.

Results are written after each network, so that what was measured is there if the rest is not.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from ragrad_ext import RaGrad

from . import record
from .costs import cost, timed
from .estimators import available
from .judge import agreement, chosen_rows
from .subjects import NETWORKS, Data, Network, Subject

STAGES = ("initialisation", "middle", "end")
FEWEST_ROWS = 100  # a rank correlation of fewer says little


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/effectiveness.json"))
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--crops", type=Path, help="flir_crops.npz; generated crops without")
    parser.add_argument("--pairs", type=Path, help="folder of image pairs; generated ones without")
    parser.add_argument("--labels", help="which labels of that folder")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=800, help="at most, that are removed")
    parser.add_argument("--minutes", type=float, default=30, help="at most, of removing, a network")
    parser.add_argument("--repeats", type=int, default=5, help="of each step that is timed")
    parser.add_argument(
        "--quick", action="store_true", help="a run to see that it works, no result"
    )
    args = parser.parse_args()
    if args.quick:
        args.seeds, args.rows, args.repeats = 1, 20, 1
    rows: list[dict[str, Any]] = []
    for name in args.networks:
        start = time.monotonic()
        rows += measured(name, args)
        record.write(args.json, "benchmarks.effectiveness", rows)
        print(f"{name}: {(time.monotonic() - start) / 60:.1f} minutes", flush=True)
    print(f"written to {args.json}")


def measured(name: str, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """All rows of one network: generated and real crops where both can be had."""
    network = NETWORKS[name]
    datas = [Data(args.crops, args.pairs, args.labels)]
    if name.startswith("small") and args.crops is not None:
        datas.insert(0, Data())
    for data in datas:
        for seed in range(args.seeds):
            yield from judged(name, network, seed, data, args)
    yield costs(name, network, datas[-1], args)


def judged(
    name: str, network: Network, seed: int, data: Data, args: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """Train one network and judge every estimator at every stage."""
    subject, estimators = made(network, seed, data, args)
    mask = chosen_rows(subject, affordable(subject, args), seed)
    epoch = 0
    for stage, until in zip(STAGES, sizes(network, args).epochs, strict=True):
        while epoch < until:
            subject.train()
            epoch += 1
        start = time.monotonic()
        for estimator, scores in agreement(subject, estimators, mask).items():
            yield {"network": name, "norm": network.norm, "data": subject.data, "seed": seed,
                   "stage": stage, "epoch": epoch, "removed": int(mask.sum()), "of": mask.numel(),
                   "estimator": estimator, **scores}  # fmt: skip
        print(f"{name}, {subject.data}, seed {seed}, {stage}: {mask.sum()} of {mask.numel()} rows, "
              f"{time.monotonic() - start:.0f} s", flush=True)  # fmt: skip


def costs(name: str, network: Network, data: Data, args: argparse.Namespace) -> dict[str, Any]:
    subject, estimators = made(network, 0, data, args)
    images = sizes(network, args).images
    found = cost(subject, estimators, args.repeats)
    return {"network": name, "norm": network.norm, "images": images, **found}


def made(
    network: Network, seed: int, data: Data, args: argparse.Namespace
) -> tuple[Subject, dict[str, Any]]:
    """A fresh network, and the estimators that it allows."""
    torch.manual_seed(seed)
    subject = network.make(seed, sizes(network, args), data)
    return subject, available(
        double_backward=network.double_backward,
        likelihood=subject.sampled is not None,
        quick=args.quick,
    )


def sizes(network: Network, args: argparse.Namespace) -> Any:
    return network.quick if args.quick else network.sizes


def affordable(subject: Subject, args: argparse.Namespace) -> int:
    """Rows that can be removed in the time there is for one network, seed and stage."""
    rows = 2 * RaGrad(subject.rgb, subject.ir).repa.layout.rows
    with torch.no_grad():
        subject.loss()
        forward = timed(subject.loss)
    seconds = 60 * args.minutes / (args.seeds * len(STAGES))
    return min(rows, args.rows, max(FEWEST_ROWS, int(seconds / forward)))


if __name__ == "__main__":
    main()
