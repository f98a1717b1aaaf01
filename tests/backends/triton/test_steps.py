"""The Triton backend from step to step: launches, what is kept, what falls back."""

from __future__ import annotations

import copy
import gc
import importlib
import pickle
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor

from ragrad_ext import Reliability, Repa, correct_
from ragrad_ext.backends import Unavailable, registry
from ragrad_ext.backends.reference import Reference
from ragrad_ext.backends.triton import verb as triton_verb
from ragrad_ext.backends.triton.backend import Triton
from ragrad_ext.rows.bucket import Buckets
from ragrad_ext.rows.layout import Layout
from ragrad_ext.rows.sums import History
from ragrad_ext.rules import RaGradRule

from ...lib import cases
from ...lib.parity import bits, bucket_of, clone
from ...lib.triton_cases import CPU, Counting, compare, found, layers

pytest.importorskip("triton")
pytestmark = pytest.mark.interpreted


class TestFromStepToStep:
    @pytest.fixture(autouse=True)
    def _launches(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from ragrad_ext.backends.triton import decide_and_apply, point

        self.correct = Counting(decide_and_apply.decide_and_apply)
        self.point = Counting(point.point)
        monkeypatch.setattr(decide_and_apply, "decide_and_apply", self.correct)
        monkeypatch.setattr(point, "point", self.point)

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
            record = Triton().decide_and_apply_(buckets.bucket(a, b, CPU), r, RaGradRule())
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

    def test_more_layers_than_addresses_in_a_batch(self) -> None:
        rgb, ir = layers(*[(2, 5)] * 40)
        compare(Triton(), rgb, ir)
        assert self.launches() == (1, 2)

    def test_once_captured_the_pointers_are_written_at_every_step(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Replaying a graph writes its own addresses, which the host does not see."""
        rgb, ir = layers((4, 8))
        buckets = Buckets(Layout.of([4]), (0,))

        def step(captured: bool) -> tuple[int, int]:
            monkeypatch.setattr(triton_verb, "is_capturing", lambda device: captured)
            bucket = buckets.bucket(rgb, ir, CPU)
            Triton().decide_and_apply_(bucket, torch.rand(2, 4), RaGradRule())
            return self.launches()

        assert [step(False), step(False)] == [(1, 1), (1, 0)]
        assert [step(True), step(True)] == [(1, 1), (1, 1)]
        assert [step(False), step(False)] == [(1, 1), (1, 1)]

    def test_what_was_captured_is_kept(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The graph comes back to its tables, whatever else is corrected in between."""
        rgb, ir = layers((4, 8))
        buckets = Buckets(Layout.of([4]), (0,))

        def tables(captured: bool, shape: tuple[int, ...]) -> weakref.ref[Tensor]:
            monkeypatch.setattr(triton_verb, "is_capturing", lambda device: captured)
            a, b = ([x.reshape(shape) for x in side] for side in (rgb, ir))
            bucket = buckets.bucket(a, b, CPU)
            Triton().decide_and_apply_(bucket, torch.rand(2, 4), RaGradRule())
            self.launches()
            return weakref.ref(self.correct.arguments["geometry"])

        kept, dropped = tables(True, (4, 8)), tables(False, (4, 2, 4))
        tables(False, (4, 8, 1))
        gc.collect()
        assert kept() is not None
        assert dropped() is None


class TestOperandsOfAnObservation:
    """Weights and history are recognised, and checked again wherever they may have changed."""

    @staticmethod
    def observed(buckets: Buckets, rgb: list[Tensor], theta: list[Tensor]) -> Tensor:
        bucket = buckets.bucket(rgb, rgb[::-1], CPU)
        return Triton().observe_(bucket, (theta, theta), None).g_theta[0]

    def test_another_tensor_at_the_same_address_with_other_strides(self) -> None:
        rgb, theta = [torch.rand(5, 5), torch.rand(5, 5)], [torch.rand(5, 5), torch.rand(5, 5)]
        buckets = Buckets(Layout.of([5, 5]), (0, 0))
        for t in (theta, theta, [x.T for x in theta], theta):
            expected = torch.cat([(a * b).sum(1) for a, b in zip(rgb, t, strict=True)])
            torch.testing.assert_close(self.observed(buckets, rgb, t), expected.double())

    def test_the_same_tensor_with_other_memory_and_strides(self) -> None:
        rgb, theta = [torch.rand(5, 5), torch.rand(5, 5)], [torch.rand(5, 5), torch.rand(5, 5)]
        buckets = Buckets(Layout.of([5, 5]), (0, 0))
        self.observed(buckets, rgb, theta)
        values = [x.clone() for x in theta]
        for x in theta:
            x.data = x.T.contiguous().T  # equal values, another layout
        assert all(torch.equal(a, b) for a, b in zip(values, theta, strict=True))
        expected = torch.cat([(a * b).sum(1) for a, b in zip(rgb, values, strict=True)])
        torch.testing.assert_close(self.observed(buckets, rgb, theta), expected.double())

    def test_with_and_without_a_history(self) -> None:
        rgb, theta = [torch.rand(5, 5), torch.rand(5, 5)], [torch.rand(5, 5), torch.rand(5, 5)]
        buckets = Buckets(Layout.of([5, 5]), (0, 0))
        mean = ([torch.zeros(5, 5), torch.zeros(5, 5)], [torch.zeros(5, 5), torch.zeros(5, 5)])
        for history in (None, History(mean, torch.ones(2, 10, dtype=torch.float64)), None):
            bucket = buckets.bucket(rgb, rgb[::-1], CPU)
            sums = Triton().observe_(bucket, (theta, theta), history)
            assert bool(sums.deviation.any()) == (history is not None)
        assert torch.equal(mean[0][0], rgb[0])


def test_a_skipped_pair_leaves_zeros() -> None:
    rgb, ir = layers((4, 8), (3, 5), (2, 6))
    sides = [rgb[0], None, rgb[2]], [ir[0], ir[1], ir[2]]
    bucket = Buckets(Layout.of([4, 3, 2]), (0,) * 3).bucket(*sides, CPU)
    mean = [torch.zeros_like(x) for x in rgb], [torch.zeros_like(x) for x in ir]
    history = History(mean, torch.ones(2, 9, dtype=torch.float64))
    sums = Triton().observe_(bucket, (rgb, ir), history)
    record = Triton().decide_and_apply_(bucket, torch.rand(2, 9), RaGradRule("cosine"))
    assert record.count() > 0
    for x in [*found(record), *sums.g_theta, *sums.deviation, *sums.observed, sums.gram]:
        assert not x[4:7].any()
    assert sums.observed[:, [0, 8]].all()


def test_no_pairs_at_all() -> None:
    bucket = Buckets(Layout.of([3]), (0,)).bucket([None], [None], CPU)
    record = Triton().decide_and_apply_(bucket, torch.rand(2, 3), RaGradRule())
    assert not record.mask.any()
    assert not Triton().observe_(bucket, ([None], [None]), None).observed.any()


def test_autograd_sees_the_change() -> None:
    rgb, ir = layers((3, 5))
    before = rgb[0]._version
    Triton().decide_and_apply_(bucket_of(rgb, ir), torch.rand(2, 3), RaGradRule())
    assert rgb[0]._version > before


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_what_is_kept_is_neither_copied_nor_holds_gradients(copied: Any) -> None:
    rgb, ir = layers((3, 5))
    buckets = Buckets(Layout.of([3]), (0,))
    Triton().decide_and_apply_(buckets.bucket(rgb, ir, CPU), torch.rand(2, 3), RaGradRule())
    bucket = copied(buckets).bucket(rgb, ir, CPU)
    assert bucket.memory == {}
    assert Triton().decide_and_apply_(bucket, torch.rand(2, 3), RaGradRule()).count() >= 0
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
    def _backends(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.backend = Triton()
        self.backend.name = "preferred"  # by "auto" too, as "triton" is on a GPU
        monkeypatch.setattr(registry, "BACKENDS", (self.backend, Reference()))
        self.rgb, self.ir = layers((16, 9), (5, 30))
        self.given = Reliability(*([torch.rand(len(x)) for x in self.rgb] for _ in range(2)))

    @pytest.fixture
    def _no_decide_and_apply(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from ragrad_ext.backends.triton import decide_and_apply

        monkeypatch.setattr(decide_and_apply, "decide_and_apply", Broken())

    @pytest.fixture(params=["observe", "rate_and_apply", "point"])
    def _one_verb_less(
        self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        module = importlib.import_module(f"ragrad_ext.backends.triton.{request.param}")
        monkeypatch.setattr(module, request.param, Broken())

    def expected(self, *args: Any, **options: Any) -> list[Tensor]:
        """The gradients as the other backend corrects them."""
        sides = clone(self.rgb), clone(self.ir)
        correct_(*sides, *args, backend="reference", **options)
        return sides[0] + sides[1]

    @pytest.mark.usefixtures("_no_decide_and_apply")
    def test_auto_goes_on_with_a_warning_once(self, recwarn: pytest.WarningsRecorder) -> None:
        mine = clone(self.rgb), clone(self.ir)
        with pytest.warns(UserWarning, match="triton.*do not compile here.*no such instruction"):
            record = correct_(*mine, self.given)
        assert record.count() > 0
        for a, b in zip(mine[0] + mine[1], self.expected(self.given), strict=True):
            assert torch.equal(a, b)
        recwarn.clear()
        correct_(*mine, self.given)
        assert not recwarn.list
        assert "no such instruction" in str(self.backend.unusable(CPU))

    @pytest.mark.usefixtures("_no_decide_and_apply")
    def test_a_named_request_fails_and_changes_nothing(self) -> None:
        rgb, ir = clone(self.rgb), clone(self.ir)
        with pytest.raises(Unavailable, match="no such instruction"):
            correct_(rgb, ir, self.given, backend="preferred")
        with pytest.raises(RuntimeError, match=r"no usable backend on cpu.*no such instruction"):
            correct_(rgb, ir, self.given, backend="preferred")
        for a, b in zip(rgb + ir, self.rgb + self.ir, strict=True):
            assert torch.equal(bits(a), bits(b))

    @pytest.mark.usefixtures("_one_verb_less")
    def test_a_step_is_taken_once_whichever_verb_fails(self) -> None:
        """What one verb has done, another backend goes on with."""
        repas = [Repa(clone(self.ir), clone(self.rgb)) for _ in range(2)]
        for repa in repas:  # the first step alone could be observed twice and leave no trace
            correct_(clone(self.ir), clone(self.rgb), repa, backend="reference")
        mine = clone(self.rgb), clone(self.ir)
        with pytest.warns(UserWarning, match="going on"):
            correct_(*mine, repas[0])
        true = self.expected(repas[1])
        states = [r.state_dict() for r in repas]
        for key in ("steps", "sensitivity", "mean"):
            torch.testing.assert_close(states[0][key], states[1][key], rtol=1e-12, atol=0)
        for a, b in zip(mine[0] + mine[1], true, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=0)

    def test_a_rule_of_both_sides_goes_on_where_apply_fails(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from ragrad_ext.backends.triton import apply

        monkeypatch.setattr(apply, "apply", Broken())
        mine = clone(self.rgb), clone(self.ir)
        with pytest.warns(UserWarning, match="going on"):
            correct_(*mine, rule="pcgrad")
        for a, b in zip(mine[0] + mine[1], self.expected(rule="pcgrad"), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=0)

    @pytest.mark.usefixtures("_no_decide_and_apply")
    @pytest.mark.parametrize("name", ["preferred", "auto"])
    def test_compiled_code_does_likewise(self, name: str) -> None:
        geometry = [0, 1], [16, 5], [0, 0]
        operands = clone(self.rgb), clone(self.ir), self.given.values, "dual", "blend", 1e-30
        operator = torch.ops.ragrad_ext.decide_and_apply_
        if name == "preferred":
            with pytest.raises(Unavailable, match="no such instruction"):
                operator(*operands, *geometry, name)
        else:
            with pytest.warns(UserWarning, match="going on"):
                mask = operator(*operands, *geometry, name)[2]
            assert mask.any()
