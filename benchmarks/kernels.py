"""What a correction costs, against reading the gradients once, and against its peers.

For each shape, dtype and share of conflicts all contestants correct the same twins in turn, on
cold caches. The floor is one read of both gradient lists and one write of the weak conflict rows
(for a whole step with `Repa` also of weights and history), at the bandwidth that plain operators
reached right before each call. ``host_us`` is what a call costs whatever the size of its layers:
on a CPU, on as many layers of 4 rows of 8 weights, by one thread; on a GPU, until the asynchronous
call returns.

On a GPU there are two more: ``wall_s``, from the call to the end of its work, host and all; and
``kernel_s``, the median of ``triton.testing.do_bench``: for a correction by a backend of the
library of a CUDA graph of the call, so that nothing of the host is in it.
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Iterator
from functools import cache, partial
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch

from ragrad_ext import correct_
from ragrad_ext.backends import BACKENDS

from . import agreement, record, shapes
from .peers import PEERS
from .timing import Baseline, Contender, Samples, host_seconds, in_turn, kernel_seconds
from .twins import Twins

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
CONFLICTS = (0.0, 0.1, 0.25)  # real detectors: about 0.1
# A loop takes about a second a call there, a compilation about a minute a shape.
ONLY_ON = {"loop": ("resnet50", "tiny_53"), "compiled": ("resnet50", "tiny_53")}
# Calls of several seconds beyond; a step, foreach and pcgrad hold every layer several times.
MOST_WEIGHTS = {"reference": 3e7, "foreach": 1e8, "pcgrad": 1e8}
MOST_IN_A_STEP = 3.1e8
SECONDS_A_CALL = ("loop", "reference")  # do_bench would call them many times


class Case(NamedTuple):
    """A correction by a given reliability ("correct"), or a whole "step" with `Repa`."""

    kind: str
    shape: str
    dtype: str
    conflicts: float


def cases(which: list[str], quick: bool = False) -> Iterator[Case]:
    """Models in every dtype and share of conflicts; anything else once."""
    for name in which:
        if quick or name not in shapes.MODELS:
            dtypes, conflicts = ["float32"], [0.1]
        else:
            dtypes, conflicts = [*DTYPES], [0.1] if name == "vit_g" else [*CONFLICTS]
        if name in shapes.TINY:
            conflicts = [0.0]  # 4 rows are too few for a share
        steps = name not in shapes.LADDER and _weights(name) <= MOST_IN_A_STEP
        kinds = ("correct", "step") if steps else ("correct",)
        for case in product(kinds, (name,), dtypes, conflicts):
            # Rounded weights leave gaps in every row of a step, and short rows scatter below 0:
            # in bfloat16 a step without any conflict cannot be made.
            if case[0] != "step" or case[2] == "float32" or case[3]:
                yield Case(*case)


def names(kind: str, shape: str, device: torch.device) -> list[str]:
    """Every backend that works on the device, and the peers, where they fit."""
    found = [b.name for b in BACKENDS if b.unusable(device) is None]
    if kind == "correct":
        found += PEERS
    return [name for name in found if _fits(name, shape)]


def contender(kind: str, name: str, twins: Twins) -> Contender:
    """A call of a backend or a peer on the twins."""
    if name not in PEERS:
        stats = twins.reliability if kind == "correct" else twins.repa()
        call = partial(correct_, twins.rgb, twins.ir, stats, backend=name)
        return Contender(call, twins.restore_)
    grads, restore_ = (twins.rgb, twins.ir), twins.restore_
    if name == "pcgrad":  # rewrites every row
        grads, restore_ = twins.copy()
    return Contender(partial(PEERS[name].correct_, *grads, twins.reliability.values), restore_)


@cache
def tiny(kind: str, name: str, layers: int) -> Contender:
    """A contender with next to nothing to do, on the CPU."""
    return contender(kind, name, Twins(shapes.tiny(layers), 0.0))


def floor_bytes(kind: str, weights: int, rewritten: int, size: int) -> int:
    """Bytes that must move, for ``weights`` a side and ``rewritten`` elements of ``size`` bytes.

    A step also reads the weights, and reads and writes its float32 history.
    """
    per_weight = size if kind == "correct" else size + size + 4 + 4
    return 2 * weights * per_weight + rewritten * size


def measure(
    case: Case, device: torch.device, baseline: Baseline, most: int, budget: float
) -> Iterator[dict[str, Any]]:
    """Check, then time, every contestant of one case: one row each."""
    layers = shapes.SHAPES[case.shape]()
    twins = Twins(layers, case.conflicts, DTYPES[case.dtype], device)
    rivals = {
        name: contender(case.kind, name, twins) for name in names(case.kind, case.shape, device)
    }
    checked = {name: rival.work for name, rival in rivals.items() if name != "pcgrad"}
    agreement.check(checked, contender(case.kind, "reference", twins).work, twins)
    if device.type == "cpu":
        host = {name: host_on_cpu(case.kind, name, len(layers), budget / 3) for name in rivals}
        rehearsals = {name: tiny(case.kind, name, 53).work for name in rivals}
    else:
        host = {name: host_seconds(rival, device, most, budget) for name, rival in rivals.items()}
        rehearsals = {}
    size = twins.rgb[0].element_size()
    floor = floor_bytes(case.kind, twins.weights, twins.rewritten, size)
    times = in_turn(rivals, rehearsals, baseline, device, most, budget)
    for name, samples in times.items():
        yield {
            "backend": name,
            "device": device.type,
            "hardware": hardware(device),
            **case._asdict(),
            "conflicts_found": float(twins.mask.float().mean()),
            "layers": len(layers),
            "weights": twins.weights,
            **timed(samples, floor),
            "host_us": 1e6 * host[name],
            **(
                on_gpu(case.kind, name, rivals[name], most, budget) if device.type == "cuda" else {}
            ),
            "threads": torch.get_num_threads(),
        }


def hardware(device: torch.device) -> str:
    """The GPU's name, or the instruction set that PyTorch itself uses on this CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return torch.backends.cpu.get_cpu_capability()


def timed(samples: Samples, floor: int) -> dict[str, Any]:
    return {
        "median_s": samples.median,
        "quartiles_s": samples.quartiles,
        "repeats": len(samples.seconds),
        "floor_bytes": floor,
        "bandwidth": samples.bandwidth,
        "bandwidths": {name: median(x) for name, x in samples.readers.items()},
        "share_of_floor": floor / samples.bandwidth / samples.median,
    }


def on_gpu(kind: str, name: str, rival: Contender, most: int, budget: float) -> dict[str, Any]:
    """What a row of a GPU has besides."""
    device = torch.device("cuda")
    row = {"wall_s": host_seconds(rival, device, most, budget, to_the_end=True)}
    if name not in SECONDS_A_CALL:
        # a step replaces tensors of its statistics, so that a graph would read old memory
        captured = kind == "correct" and name not in PEERS
        row["kernel_s"] = kernel_seconds(rival, captured)
    return row


@cache
def host_on_cpu(kind: str, name: str, layers: int, budget: float) -> float:
    """Seconds of a call on ``layers`` tiny layers; one thread, since none is worth starting."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rival = tiny(kind, name, layers)
        rival.work()
        return host_seconds(rival, torch.device("cpu"), most=200, budget=budget)
    finally:
        torch.set_num_threads(threads)


def add_slopes(rows: list[dict[str, Any]]) -> None:
    """To rows of the ladder: the slope of log time over log weights up to here, by least squares.

    1 is a cost in proportion to the weights.
    """
    ladder = [r for r in rows if r["shape"] in shapes.LADDER]
    for row in ladder:
        fit = [r for r in ladder if r["backend"] == row["backend"]]
        points = [(r["weights"], r["median_s"]) for r in fit if r["weights"] <= row["weights"]]
        if len(points) > 1:
            x, y = np.log(np.array(points)).T
            row["slope"] = float(np.polyfit(x, y, 1)[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", type=Path, help="benchmarks/results/kernels_DEVICE.json")
    parser.add_argument("--shapes", nargs="+", choices=shapes.SHAPES, default=[*shapes.SHAPES])
    parser.add_argument("--quick", action="store_true", help="one dtype, few repeats")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    path = args.json or Path(f"benchmarks/results/kernels_{device.type}.json")
    most, budget = (3, 0.0) if args.quick else (21, 1.5)
    baseline = Baseline(device)
    rows: list[dict[str, Any]] = []
    for case in cases(args.shapes, args.quick):
        for row in measure(case, device, baseline, most, budget):
            rows.append(row)
            add_slopes(rows)
            print(line(row), flush=True)
        record.write(path, "benchmarks.kernels", rows)  # a long run: keep what there is
        gc.collect()
    print(f"written to {path}")


def line(row: dict[str, Any]) -> str:
    slope = f", slope {row['slope']:.3f}" if "slope" in row else ""
    return (
        f"{row['shape']:12} {row['dtype']:8} {100 * row['conflicts']:3.0f} % {row['kind']:7} "
        f"{row['backend']:19} {1e3 * row['median_s']:9.3f} ms, "
        f"{100 * row['share_of_floor']:5.1f} % of {row['bandwidth'] / 1e9:.1f} GB/s, "
        f"host {row['host_us']:.0f} us{slope}"
    )


def _weights(shape: str) -> int:
    return shapes.count(shapes.SHAPES[shape]())


def _fits(name: str, shape: str) -> bool:
    only, most = ONLY_ON.get(name), MOST_WEIGHTS.get(name)
    return (only is None or shape in only) and (most is None or _weights(shape) <= most)


if __name__ == "__main__":
    main()
