"""Random streams: each follows from its seed and its place."""

from __future__ import annotations

import torch

from ragrad_ext.detection.seeds import AUGMENT, ORDER, derive_seed, own_randomness, seed_


def test_seeds_depend_on_every_part() -> None:
    parts = [(s, p, e, i) for s in (0, 1) for p in (ORDER, AUGMENT) for e in (0, 1) for i in (0, 1)]
    seeds = {derive_seed(*part) for part in parts}
    assert len(seeds) == 16
    assert all(0 <= s < 2**63 for s in seeds)


def test_own_randomness_leaves_the_global_state_alone() -> None:
    before = torch.get_rng_state()
    with own_randomness(torch.device("cpu")):
        seed_(5, torch.device("cpu"))
        torch.rand(3)
    assert torch.equal(torch.get_rng_state(), before)
