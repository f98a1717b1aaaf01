"""The Triton kernels compile for devices that are absent, and spill no register."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")
pytestmark = pytest.mark.slow  # minutes of one core
ROOT = Path(__file__).parents[3]
TARGETS = ("80", "90", "100")
FUSED = ("decide_and_apply", "rate_and_apply")  # of which blocks wait for one another
VERBS = ("observe", "apply", *FUSED)
# A ticket and how many have left; who arrived; the flag (polling it is a load, or adds 0).
ATOMICS = {"acq_rel.add", "relaxed.add", "release.exch", "acquire.add"}


@pytest.fixture(scope="module")
def kernels() -> list[dict[str, Any]]:
    """What `triton_ahead` says of every kernel; in processes of their own, without interpreter."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.lib.triton_ahead", sm],
            cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE,
        )
        for sm in TARGETS
    ]  # fmt: skip
    said = [process.communicate()[0] for process in running]
    assert [process.returncode for process in running] == [0] * len(running), "\n".join(said)
    found = [json.loads(line) for line in "".join(said).splitlines()]
    for k in found:
        print(f"sm_{k['sm']:<3} {k['REG']:>3} registers, {k['warps']} warps, "
              f"{k['shared']:>5} bytes shared  {k['name']}")  # fmt: skip
    return found


def test_every_kernel_compiles_for_every_target(kernels: list[dict[str, Any]]) -> None:
    for verb in (*VERBS, "point"):
        assert {str(k["sm"]) for k in kernels if k["name"].startswith(f"{verb}: ")} == {*TARGETS}


def test_no_kernel_spills(kernels: list[dict[str, Any]]) -> None:
    """Spilled registers are kept on the stack, and nothing else is."""
    spills = [(k["sm"], k["name"], k["STACK"], k["LOCAL"]) for k in kernels]
    spills = [k for k in spills if k[2] or k[3]]
    version = importlib.metadata.version("triton")
    if spills and version.startswith("3.6."):
        most = max(k[2] for k in spills)
        pytest.skip(f"triton 3.6 spills up to {most} bytes of a thread, in {len(spills)} kernels")
    assert spills == []


def test_aligned_rows_are_read_16_bytes_at_a_time(kernels: list[dict[str, Any]]) -> None:
    """And written so; a mean of 16 bits beside a gradient of 32 is written 8 bytes at a time."""
    for k in kernels:
        if k["name"].startswith(VERBS):
            runs = "walk" not in k["name"]
            assert (k["vector loads"] > 0, k["vector stores"] > 0) == (runs, runs), k


def test_apply_waits_for_nothing(kernels: list[dict[str, Any]]) -> None:
    """Its rows depend on no other rows: there is no counter in it."""
    alone = [k for k in kernels if k["name"].startswith("apply: ")]
    assert alone
    assert [k for k in alone if k["atomics"]] == []


def test_atomics_are_counters_alone(kernels: list[dict[str, Any]]) -> None:
    """Of integers, at device scope, and in the order of memory that the protocol asks for."""
    for k in kernels:
        for atomic in k["atomics"]:
            parts = atomic.split(".")
            assert {"global", "gpu"} <= set(parts), k
            assert parts[-1] in ("u32", "s32", "b32"), k
            assert ".".join(parts[3:5]) in ATOMICS, k
        if k["name"].startswith(FUSED):
            assert {"acq_rel", "relaxed", "release"} <= {a.split(".")[3] for a in k["atomics"]}
            assert k["acquires"]


def test_a_block_releases_what_all_of_its_threads_wrote(kernels: list[dict[str, Any]]) -> None:
    assert [k for k in kernels if k["unguarded releases"]] == []


def test_a_layer_is_decided_after_all_threads_wrote_its_reliability(
    kernels: list[dict[str, Any]],
) -> None:
    assert [k for k in kernels if k["open ends"]] == []


def test_a_release_without_a_barrier_would_be_noticed() -> None:
    from ...lib.triton_ahead import unguarded

    barrier, store, call = "\tbar.sync 0;", "\tst.global.b64 [ %rd1 + 0 ], %r1;", "call.uni f, (x);"
    release = "@%p2 atom.global.gpu.acq_rel.add.u32 %r1, [ %rd1 + 0 ], %r2;"
    assert unguarded("\n".join([store, barrier, release, release, call])) == 0
    assert unguarded("\n".join([barrier, store, release])) == 1
    assert unguarded("\n".join([barrier, call, release.replace("acq_rel", "release")])) == 1


def test_what_other_blocks_write_is_not_read_through_the_read_only_cache(
    kernels: list[dict[str, Any]],
) -> None:
    assert [k for k in kernels if k["read-only loads"]] == []
