"""What RaGrad adds to a whole training step, in time and in peak memory: a two-stream FCOS.

A step is forward, backward, correction and AdamW, on generated images. All contestants take one
step in turn, on the same model and batch, and a round is compared within itself: ``added_time``. As
steps of seconds differ by more than the correction takes, ``own_time`` is what is spent in RaGrad's
own calls, before and after the backward; of what RaGrad does it leaves out only hooks in the
backward, which frozen BatchNorms need and trained ones do not.
"""

from __future__ import annotations

import argparse
import statistics
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ragrad_ext import RaGrad
from ragrad_ext.detection.data.datasets import Scenes, collate
from ragrad_ext.detection.models.two_stream import build

from . import record
from .costs import peak_bytes, timed
from .subjects import freeze_

CONTESTANTS: dict[str, dict[str, Any]] = {
    "RaGrad": {},
    "RaGrad, history in bfloat16": {"history_dtype": torch.bfloat16},
    "RaGrad, without sensitivity": {"reliability": "effectiveness"},
}
NORMS = ("batch", "frozen")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/overhead.json"))
    parser.add_argument("--backbone", default="resnet50", choices=("light", "resnet18", "resnet50"))
    parser.add_argument("--norms", nargs="+", default=list(NORMS), choices=NORMS)
    parser.add_argument("--batches", type=int, nargs="+", default=[8])
    parser.add_argument("--size", type=int, nargs=2, default=(384, 288), help="width and height")
    parser.add_argument("--rounds", type=int, default=5, help="timed, after one that is not")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = []
    for norm in args.norms:
        for images in args.batches:
            rows += overhead(args.backbone, norm, images, tuple(args.size), args.rounds)
            record.write(args.json, "benchmarks.overhead", rows)
            print(rows[-1], flush=True)
    print(f"written to {args.json}")


def overhead(
    backbone: str, norm: str, images: int, size: tuple[int, int], rounds: int
) -> list[dict[str, Any]]:
    """One row per contestant; times and bytes of the plain step are in each."""
    torch.manual_seed(0)
    data = Scenes(images, size=size)
    batch = collate([data[i] for i in range(images)])
    model: Any = build("fcos", backbone, len(data.classes))
    if norm == "frozen":
        freeze_(model.backbone)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)

    def step(ragrad: RaGrad | None) -> float:
        """Seconds in RaGrad's own calls."""
        optimizer.zero_grad()
        loss = torch.stack(list(model(*batch).values())).sum()
        own = 0.0
        if ragrad is not None:
            own += timed(partial(ragrad.repa.before_backward, loss))
        loss.backward()
        if ragrad is not None:
            own += timed(ragrad.correct_)
        optimizer.step()
        return own

    def fresh(how: dict[str, Any]) -> RaGrad:
        return RaGrad(model.backbone.rgb, model.backbone.ir, **how)

    contestants = {name: fresh(how) for name, how in CONTESTANTS.items()}
    step(None)
    for ragrad in contestants.values():
        step(ragrad)
    plain = []
    added, own = ({name: list[float]() for name in contestants} for _ in range(2))
    for _ in range(rounds):
        plain.append(timed(partial(step, None)))
        for name, ragrad in contestants.items():
            start = time.perf_counter()
            mine = step(ragrad)
            whole = time.perf_counter() - start
            added[name].append(whole / plain[-1] - 1)
            own[name].append(mine / (whole - mine))
    held = resident(model, optimizer)
    del contestants, ragrad
    base = held + peak_bytes(model, partial(step, None))

    def first_step(how: dict[str, Any]) -> None:
        step(fresh(how))  # so that what is kept from step to step is counted

    return [
        {
            "backbone": backbone, "norm": norm, "images": images, "size": list(size),
            "contestant": name, "step_seconds": statistics.median(plain), "step_bytes": base,
            "own_time": statistics.median(own[name]),
            "added_time": statistics.median(added[name]), "rounds": sorted(added[name]),
            "added_memory": (held + peak_bytes(model, partial(first_step, how))) / base - 1,
        }
        for name, how in CONTESTANTS.items()
    ]  # fmt: skip


def resident(model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Bytes of what is there between steps, gradients aside."""
    state = [t for s in optimizer.state.values() for t in s.values() if isinstance(t, torch.Tensor)]
    return sum(
        t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers(), *state)
    )


if __name__ == "__main__":
    main()
