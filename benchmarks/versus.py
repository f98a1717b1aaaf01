"""An earlier checkout against this one: the same corrections in turn, in one run.

    python -m benchmarks.versus EARLIER_CHECKOUT

The checkout needs its own compiled module (``python setup.py build_ext --inplace``). Each version
has a process of its own that keeps the same twins. The two are called alternately, so that whatever
else the machine does meets both alike, and which one goes first alternates too. The result is the
ratio this / earlier, of medians and of each pair of calls.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path
from statistics import median, quantiles
from typing import IO, Any

import torch

from . import record, shapes

HERE = Path(__file__).parents[1]
DTYPES = ("float32", "bfloat16")
CONFLICTS = {"correct": (0.0, 0.1, 0.25), "step": (0.1,)}
MOST_WEIGHTS = {"correct": 3.1e8, "step": 2e8}  # both processes hold their own

# What both versions run: names that have not changed since the first of them.
WORKER = """
import sys, time, torch
from benchmarks import shapes
from benchmarks.twins import Twins
from ragrad_ext import correct_
backend, threads = sys.argv[1], int(sys.argv[2])
torch.set_num_threads(threads)
cold = torch.ones(1 << 24)
for line in sys.stdin:
    what = line.split()
    if what[0] == "make":
        twins = stats = None
        twins = Twins(shapes.SHAPES[what[2]](), float(what[4]), getattr(torch, what[3]))
        stats = twins.reliability if what[1] == "correct" else twins.repa()
        print("made", flush=True)
    else:
        twins.restore_()
        cold.sum()  # other memory is in the caches, as between a backward and a correction
        start = time.perf_counter()
        correct_(twins.rgb, twins.ir, stats, backend=backend)
        print(time.perf_counter() - start, flush=True)
"""


class Worker:
    """A process that corrects on demand."""

    def __init__(self, checkout: Path, backend: str, threads: int) -> None:
        command = [sys.executable, "-c", WORKER, backend, str(threads)]
        environment = os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": str(threads)}
        self.process = subprocess.Popen(
            command, cwd=checkout, env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def ask(self, line: str) -> str:
        stdin: IO[str] = self.process.stdin  # type: ignore[assignment]
        stdout: IO[str] = self.process.stdout  # type: ignore[assignment]
        stdin.write(line + "\n")
        stdin.flush()
        answer = stdout.readline()
        if not answer:
            raise RuntimeError(f"the process of {self.process.args!r} has ended")
        return answer


def compare(case: tuple[str, str, str, float], workers: list[Worker], pairs: int) -> dict[str, Any]:
    """Medians of both, and the ratio this / earlier."""
    kind, shape, dtype, conflicts = case
    for worker in workers:
        worker.ask(f"make {kind} {shape} {dtype} {conflicts}")
        worker.ask("run")  # allocates
    seconds: list[list[float]] = [[], []]
    for n in range(pairs):
        for which in (0, 1) if n % 2 else (1, 0):
            seconds[which].append(float(workers[which].ask("run")))
    ratios = [b / a for a, b in zip(*seconds, strict=True)]
    low, _, high = quantiles(ratios, n=4)
    return {
        "kind": kind,
        "shape": shape,
        "dtype": dtype,
        "conflicts": conflicts,
        "earlier_s": median(seconds[0]),
        "this_s": median(seconds[1]),
        "ratio_of_medians": median(seconds[1]) / median(seconds[0]),
        "median_of_ratios": median(ratios),
        "quartiles_of_ratios": [low, high],
        "pairs": pairs,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("earlier", type=Path, help="a checkout with its compiled module")
    parser.add_argument("--backend", default="native")
    parser.add_argument("--shapes", nargs="+", choices=shapes.SHAPES, default=[*shapes.SHAPES])
    parser.add_argument("--pairs", type=int, default=21)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/versus_cpu.json"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    workers = [Worker(at.resolve(), args.backend, args.threads) for at in (args.earlier, HERE)]
    rows = []
    for kind, shares in CONFLICTS.items():
        for shape in args.shapes:
            if shapes.count(shapes.SHAPES[shape]()) > MOST_WEIGHTS[kind]:
                continue
            model = shape in shapes.MODELS
            for dtype in DTYPES if model else DTYPES[:1]:
                for conflicts in shares if model else shares[-1:]:
                    if shape in shapes.TINY:
                        conflicts = 0.0  # 4 rows are too few for a share
                    rows.append(compare((kind, shape, dtype, conflicts), workers, args.pairs))
                    print(line(rows[-1]), flush=True)
        record.write(args.json, "benchmarks.versus", rows)
    print(f"written to {args.json}")


def line(row: dict[str, Any]) -> str:
    low, high = row["quartiles_of_ratios"]
    return (
        f"{row['kind']:7} {row['shape']:12} {row['dtype']:8} {100 * row['conflicts']:3.0f} %  "
        f"{1e3 * row['earlier_s']:8.3f} -> {1e3 * row['this_s']:8.3f} ms, "
        f"ratio {row['median_of_ratios']:.3f} ({low:.3f} to {high:.3f})"
    )


if __name__ == "__main__":
    main()
