"""The Triton backend from step to step: launches, what is kept, what falls back."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor

from ragrad_ext import Reliability, Repa, backends, correct_
from ragrad_ext.backends import History, Unavailable
from ragrad_ext.backends.triton import launch as triton_launch
from ragrad_ext.backends.triton.backend import Triton
from ragrad_ext.rows.bucket import Buckets, Layout
from ragrad_ext.rules.ragrad import Options

from ...lib import cases
from ...lib.parity import bits, bucket_of, clone
from ...lib.triton_cases import CPU, Counting, compare, found, layers

pytest.importorskip("triton")
pytestmark = pytest.mark.interpreted


class TestFromStepToStep:
    @pytest.fixture(autouse=True)
    def _launches(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from ragrad_ext.backends.triton import correct as triton_correct
        from ragrad_ext.backends.triton import rows as triton_rows

        self.correct, self.point = Counting(triton_correct.correct), Counting(triton_rows.point)
        monkeypatch.setattr(triton_correct, "correct", self.correct)
        monkeypatch.setattr(triton_rows, "point", self.point)

    def launches(self) -> tuple[int, int]:
        """Of the correction, and of the pointer table's kernel, since the last call."""
        counts = len(self.correct.grids), len(self.point.grids)
        self.correct.grids.clear()
        self.point.grids.clear()
        return counts

    def test_one_launch_and_the_pointers_only_when_they_moved(self) -> None:
        rgb, ir = layers((4, 8), (9, 9), (3, 300))
        buckets = Buckets(Layout.of([4, 9, 3]), (0, 0, 0))
        r = torch.rand(2, 16, generator=cases.rng(1))

        def step(a: list[Tensor], b: list[Tensor]) -> list[Tensor]:
            for new, old in zip(a + b, rgb + ir, strict=True):
                new.copy_(old)
            record = Triton().correct_(buckets.bucket(a, b, CPU), r, Options())
            return [*a, *b, *found(record)]

        first = clone(rgb), clone(ir)
        kept = [x.clone() for x in step(*first)]
        assert self.launches() == (1, 1)
        again = step(*first)
        assert self.launches() == (1, 0)
        moved = step(clone(rgb), clone(ir))
        assert self.launches() == (1, 1)
        unaligned = [torch.empty(x.numel() + 1)[1:].view(x.shape) for side in first for x in side]
        other = step(unaligned[:3], unaligned[3:])
        assert self.launches() == (1, 1)
        for one, two, three, four in zip(kept, again, moved, other, strict=True):
            assert torch.equal(one, two)
            assert torch.equal(one, three)
            torch.testing.assert_close(one, four, rtol=1e-6, atol=0)

    def test_every_dtype_and_rows_that_are_no_runs_take_a_launch_of_their_own(self) -> None:
        rgb, ir = layers((4, 8), (9, 9), (3, 30), (3, 8))
        rgb, ir = ([s[0], s[1].half(), s[2].bfloat16(), s[3].T] for s in (rgb, ir))
        compare(Triton(), rgb[:3], ir[:3])
        assert self.launches()[0] == 3
        compare(Triton(), rgb[::3], ir[::3])
        assert self.launches()[0] == 2
        compare(Triton(two_launches=True), rgb[:1], ir[:1])
        assert self.launches()[0] == 2

    def test_more_layers_than_addresses_in_a_batch(self) -> None:
        rgb, ir = layers(*[(2, 5)] * 40)
        compare(Triton(), rgb, ir)
        assert self.launches() == (1, 2)

    def test_once_captured_the_pointers_are_written_at_every_step(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Replaying a graph writes its own addresses, behind the back of the host's record."""
        rgb, ir = layers((4, 8))
        buckets = Buckets(Layout.of([4]), (0,))

        def step() -> tuple[int, int]:
            Triton().correct_(buckets.bucket(rgb, ir, CPU), torch.rand(2, 4), Options())
            return self.launches()

        assert [step(), step()] == [(1, 1), (1, 0)]
        work = buckets.bucket(rgb, ir, CPU).memory["triton Correction"]
        work.captured = True
        assert [step(), step()] == [(1, 0), (1, 0)]  # nothing was captured: the record is right
        monkeypatch.setattr(triton_launch, "_capturing", lambda device: True)
        assert [step(), step()] == [(1, 1), (1, 1)]
        monkeypatch.setattr(triton_launch, "_capturing", lambda device: False)
        assert [step(), step()] == [(1, 1), (1, 1)]
        assert buckets.bucket(rgb, ir, CPU).memory["captured"] == [work]


def test_a_skipped_pair_leaves_zeros() -> None:
    rgb, ir = layers((4, 8), (3, 5), (2, 6))
    sides = [rgb[0], None, rgb[2]], [ir[0], ir[1], ir[2]]
    bucket = Buckets(Layout.of([4, 3, 2]), (0,) * 3).bucket(*sides, CPU)
    history = History(tuple([torch.zeros_like(x) for x in rgb] for _ in range(2)), torch.ones(2, 9))  # type: ignore[arg-type]
    sums = Triton().observe_(bucket, (rgb, ir), history._replace(weight=history.weight.double()))
    record = Triton().correct_(bucket, torch.rand(2, 9), Options("cosine"))
    assert record.count() > 0
    given = Triton().correct_(bucket, torch.rand(2, 9), Options("cosine"), sums.twin_dots)
    records = found(record) + found(given)
    for x in [*records, *sums.dot, *sums.deviation, *sums.observed, sums.twin_dots]:
        assert x is not None
        assert not x[4:7].any()
    assert sums.observed[:, [0, 8]].all()


def test_no_pairs_at_all() -> None:
    bucket = Buckets(Layout.of([3]), (0,)).bucket([None], [None], CPU)
    record = Triton().correct_(bucket, torch.rand(2, 3), Options())
    assert not record.mask.any()
    assert not Triton().observe_(bucket, ([None], [None]), None).observed.any()


def test_autograd_sees_the_change() -> None:
    rgb, ir = layers((3, 5))
    before = rgb[0]._version
    Triton().correct_(bucket_of(rgb, ir), torch.rand(2, 3), Options())
    assert rgb[0]._version > before


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_what_is_kept_is_neither_copied_nor_holds_gradients(copied: Any) -> None:
    rgb, ir = layers((3, 5))
    buckets = Buckets(Layout.of([3]), (0,))
    Triton().correct_(buckets.bucket(rgb, ir, CPU), torch.rand(2, 3), Options())
    bucket = copied(buckets).bucket(rgb, ir, CPU)
    assert bucket.memory == {}
    assert Triton().correct_(bucket, torch.rand(2, 3), Options()).count() >= 0
    alive = weakref.ref(rgb[0])
    del rgb, bucket
    gc.collect()
    assert alive() is None
    assert buckets.bucket([None], [None], CPU).memory


class Broken:
    def warmup(self, *args: object, **options: object) -> None:
        raise RuntimeError("no such instruction")


class TestKernelsThatDoNotCompile:
    """It is found out before anything is written; "auto" goes on, a named request does not."""

    @pytest.fixture(autouse=True)
    def _broken(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from ragrad_ext.backends.triton import correct as triton_correct

        self.backend = Triton()
        self.backend.name = "preferred"  # by "auto" too, as "triton" is on a GPU
        monkeypatch.setattr(backends, "BACKENDS", (self.backend, *backends.BACKENDS[1:]))
        self.correct = triton_correct.correct
        monkeypatch.setattr(triton_correct, "correct", Broken())
        self.rgb, self.ir = layers((16, 9), (5, 30))
        self.given = Reliability(*([torch.rand(len(x)) for x in self.rgb] for _ in range(2)))

    def test_auto_goes_on_with_a_warning_once(self, recwarn: pytest.WarningsRecorder) -> None:
        mine, true = [[clone(self.rgb), clone(self.ir)] for _ in range(2)]
        with pytest.warns(UserWarning, match="triton.*do not compile here.*no such instruction"):
            record = correct_(*mine, self.given)
        correct_(*true, self.given, backend=backends.select("auto", CPU).name)
        assert record.count() > 0
        for a, b in zip(mine[0] + mine[1], true[0] + true[1], strict=True):
            assert torch.equal(a, b)
        recwarn.clear()
        correct_(*mine, self.given)
        assert not recwarn.list
        assert "no such instruction" in str(self.backend.unusable(CPU))

    def test_a_named_request_fails_and_changes_nothing(self) -> None:
        rgb, ir = clone(self.rgb), clone(self.ir)
        with pytest.raises(Unavailable, match="no such instruction"):
            correct_(rgb, ir, self.given, backend="preferred")
        with pytest.raises(RuntimeError, match=r"no usable backend on cpu.*no such instruction"):
            correct_(rgb, ir, self.given, backend="preferred")
        for a, b in zip(rgb + ir, self.rgb + self.ir, strict=True):
            assert torch.equal(bits(a), bits(b))

    def test_nothing_is_observed_that_is_not_corrected_then(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from ragrad_ext.backends.triton import (
            conclude as triton_conclude,
        )
        from ragrad_ext.backends.triton import (
            correct as triton_correct,
        )

        monkeypatch.setattr(triton_correct, "correct", self.correct)
        monkeypatch.setattr(triton_conclude, "conclude", Broken())
        repas = [Repa(clone(self.ir), clone(self.rgb)) for _ in range(2)]
        for repa in repas:  # the first step alone could be observed twice and leave no trace
            correct_(clone(self.ir), clone(self.rgb), repa, backend="reference")
        mine, true = [[clone(self.rgb), clone(self.ir)] for _ in range(2)]
        with pytest.warns(UserWarning, match="going on"):
            correct_(*mine, repas[0])
        correct_(*true, repas[1], backend=backends.select("auto", CPU).name)
        states = [r.state_dict() for r in repas]
        for key in ("steps", "sensitivity", "mean"):
            torch.testing.assert_close(states[0][key], states[1][key], rtol=0, atol=0)
        for a, b in zip(mine[0] + mine[1], true[0] + true[1], strict=True):
            assert torch.equal(a, b)

    def test_compiled_code_goes_on_likewise(self) -> None:
        geometry = [0, 1], [16, 5], [0, 0]
        op = torch.ops.ragrad_ext.correct_
        args = self.given.values, None, "dual", "blend", 1e-30, *geometry
        with pytest.raises(Unavailable, match="no such instruction"):
            op(clone(self.rgb), clone(self.ir), *args, "preferred")
        self.backend._known[CPU] = None
        with pytest.warns(UserWarning, match="going on"):
            mask = op(clone(self.rgb), clone(self.ir), *args, "auto")[2]
        assert mask.any()
