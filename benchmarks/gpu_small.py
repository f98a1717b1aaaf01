"""Every CUDA kernel once, on small twins, against the reference: what compute-sanitizer watches.

PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer python -m benchmarks.gpu_small
"""

from __future__ import annotations

from . import agreement, kernels
from .peers import PEERS
from .shapes import Shape
from .twins import Twins

# Short rows, rows of odd length, rows long enough to be split, and a layer of one row.
SHAPES: list[Shape] = [(24, 8, 3, 3), (64, 3, 7, 7), (40, 80), (10, 1, 7, 7), (12, 70001), (1, 5)]


def main(device: str = "cuda") -> None:
    for dtype in kernels.DTYPES.values():
        twins = Twins(SHAPES, 0.25, dtype, device)
        check(twins, f"{dtype}")
        # rows that are no runs, beside twins that are
        twins.rgb = [g.movedim(0, -1).contiguous().movedim(-1, 0) for g in twins.rgb]
        check(twins, f"{dtype}, channels innermost")


def check(twins: Twins, what: str) -> None:
    for kind in ("correct", "step"):
        works = {
            name: kernels.contender(kind, name, twins).work
            for name in kernels.names(kind, "tiny_53", twins.rgb[0].device)
            if name not in PEERS
        }
        agreement.check(works, works["reference"], twins)
        print(f"{kind}, {what}: {', '.join(works)} agree", flush=True)


if __name__ == "__main__":
    main()
