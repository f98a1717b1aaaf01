"""Find the launch parameters of the Triton kernels for this GPU, and write them down.

    python -m benchmarks.tune_triton --write

It starts from the present entry of `ragrad_ext.backends.triton.tuning` and changes one parameter at
a time, as long as some change is faster. What is compared is the geometric mean of kernel times
(do_bench) over the works below. The entry goes into that file, every trial into a result file.
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ragrad_ext.backends import Unavailable
from ragrad_ext.backends.triton import tuning as triton_tuning
from ragrad_ext.backends.triton.backend import Triton
from ragrad_ext.backends.triton.tuning import TABLE, Tuning
from ragrad_ext.rows.bucket import Bucket, Buckets
from ragrad_ext.rows.sums import History
from ragrad_ext.rules import RaGradRule

from . import record, shapes
from .timing import Contender, kernel_seconds
from .twins import Twins

CHOICES: dict[str, tuple[int, ...]] = {
    "registers": (80, 96, 128, 168),
    "correct_warps": (4, 8, 16),
    "correct_blocks": (1, 2, 3, 4, 6),
    "observe_warps": (4, 8, 16),
    "observe_blocks": (1, 2, 3, 4, 6),
    "tile_bytes": (2 << 10, 4 << 10, 8 << 10, 16 << 10),
    "unit_bytes": (16 << 10, 32 << 10, 64 << 10, 128 << 10),
    "share": (4, 8, 16),
}
WORKS = [("correct", "resnet50", torch.float32), ("correct", "resnet50", torch.bfloat16),
         ("correct", "vit_l", torch.float32), ("observe", "resnet50", torch.float32)]  # fmt: skip
LEAST_GAIN = 0.005  # of the time; less is noise

Cost = Callable[[Tuning], float]
Trial = tuple[Tuning, float]


def changed(tuned: Tuning, name: str, value: int) -> Tuning:
    """The same but for one parameter, its own or one of its limits."""
    fields = tuned._asdict()
    if name in fields:
        fields[name] = value
    else:
        fields["limits"] = tuned.limits._replace(**{name: value})
    return Tuning(**fields)


def search(start: Tuning, cost: Cost) -> Iterator[Trial]:
    """Every trial, and the best one once more at the end."""
    best = start, cost(start)
    yield best
    tried = {start}
    better = True
    while better:
        better = False
        for name, values in CHOICES.items():
            for value in values:
                new = changed(best[0], name, value)
                if new in tried:
                    continue
                tried.add(new)
                trial = new, cost(new)
                yield trial
                if trial[1] < best[1] * (1 - LEAST_GAIN):
                    best, better = trial, True
    yield best


def cost_on(device: torch.device, tuned: Tuning) -> float:
    """Geometric mean of kernel times, in seconds; infinite where a kernel does not compile."""
    TABLE[torch.cuda.get_device_capability(device)] = tuned
    logs = []
    for kind, shape, dtype in WORKS:
        twins = Twins(shapes.SHAPES[shape](), 0.1, dtype, device)  # remembers no other tuning
        try:
            logs.append(math.log(kernel_seconds(contender(kind, twins), captured=True)))
        except (Unavailable, RuntimeError) as error:
            print(f"left out: {error}")
            return math.inf
    return math.exp(sum(logs) / len(logs))


def contender(kind: str, twins: Twins) -> Contender:
    """One call of a verb on the twins: "correct" decides and applies by their reliability."""
    backend, bucket, r = Triton(), bucket_of(twins), twins.reliability.values
    if kind == "correct":
        call = partial(backend.decide_and_apply_, bucket, r, RaGradRule())
        return Contender(call, twins.restore_)
    weights = [g.clone() for g in twins.rgb], [g.clone() for g in twins.ir]
    mean = [g.float() for g in twins.rgb], [g.float() for g in twins.ir]
    step_size = torch.full_like(r, 0.05, dtype=torch.float64)
    history = History(mean, step_size)
    return Contender(partial(backend.observe_, bucket, weights, history), lambda: None)


def bucket_of(twins: Twins) -> Bucket:
    layout = twins.reliability.layout
    return Buckets(layout, [0] * len(twins.rgb)).bucket(twins.rgb, twins.ir, twins.rgb[0].device)


def rendered(source: str, table: dict[tuple[int, int], Tuning]) -> str:
    """The source of `triton/tuning.py` with this table in place of its own."""
    lines = [f"    {capability}: {_call(tuned)},\n" for capability, tuned in sorted(table.items())]
    text = "{\n" + "".join(lines) + "}\n" if lines else "{}\n"
    pattern = re.compile(r"^(TABLE: .* = )\{(?:\}|\n.*?^\})\n", re.DOTALL | re.MULTILINE)
    new, found = pattern.subn(lambda m: m[1] + text, source)
    if found != 1:
        raise ValueError("triton/tuning.py has no TABLE that could be replaced")
    return new


def _call(value: Any, indent: str = " " * 8) -> str:
    """A named tuple as code, one argument a line."""
    if not hasattr(value, "_asdict"):
        return repr(value)
    arguments = "".join(
        f"{indent}{k}={_call(v, indent + ' ' * 4)},\n" for k, v in value._asdict().items()
    )
    return f"{type(value).__name__}(\n{arguments}{indent[:-4]})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="default benchmarks/results/tuning_sm_NN.json")
    parser.add_argument("--write", action="store_true", help="put the entry into triton/tuning.py")
    args = parser.parse_args()
    device = torch.device("cuda", torch.cuda.current_device())
    if reason := Triton().unusable(device):
        parser.exit(1, f"triton cannot be tuned here: {reason}\n")
    capability = torch.cuda.get_device_capability(device)
    path = args.json or Path("benchmarks/results/tuning_sm_{}{}.json".format(*capability))
    rows: list[dict[str, Any]] = []
    for tuned, seconds in search(triton_tuning.tuning(capability), partial(cost_on, device)):
        parameters = tuned._asdict() | {"limits": tuned.limits._asdict()}
        rows.append({"device": torch.cuda.get_device_name(device), "s": seconds, **parameters})
        print(f"{1e6 * seconds:9.2f} us  {tuned}", flush=True)
        record.write(path, "benchmarks.tune_triton", rows)
    TABLE[capability] = tuned
    print(f"best: {_call(tuned)}")
    if args.write:
        file = Path(triton_tuning.__file__)
        file.write_text(rendered(file.read_text(), TABLE))


if __name__ == "__main__":
    main()
