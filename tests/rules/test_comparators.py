"""PCGrad* and IMTL*: by hand, and the laws that define them, on every backend."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from ragrad_ext import RaGrad, correct_
from ragrad_ext.backends import BACKENDS
from ragrad_ext.rows.layout import Layout
from ragrad_ext.rules import IMTL, PCGrad

from ..lib import cases, oracle
from ..lib.networks import TwoStream, loss_of
from ..lib.parity import bits, clone, hold_to_exact
from ..lib.tolerances import RESULT

Sides = tuple[list[Tensor], list[Tensor]]
USABLE = [b.name for b in BACKENDS if b.unusable(torch.device("cpu")) is None]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
every_backend = pytest.mark.parametrize("backend", USABLE)


def by(rule: str, rgb: list[Tensor], ir: list[Tensor], backend: str) -> Sides:
    new = clone(rgb), clone(ir)
    correct_(*new, rule=rule, backend=backend)  # type: ignore[arg-type]
    return new


class TestByHand:
    # Row 0: dot -3, |rgb|^2 1, |ir|^2 25. Row 1: dot 2. Row 2: a zero row.
    rgb = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    ir = torch.tensor([[-3.0, 4.0], [2.0, 0.0], [3.0, 4.0]])

    @every_backend
    def test_pcgrad(self, backend: str) -> None:
        (rgb,), (ir,) = by("pcgrad", [self.rgb], [self.ir], backend)
        # rgb + 3/25 ir = (0.64, 0.48); ir + 3 rgb = (0, 4), of the *old* rgb
        torch.testing.assert_close(rgb, torch.tensor([[0.64, 0.48], [1.0, 0.0], [0.0, 0.0]]))
        torch.testing.assert_close(ir, torch.tensor([[0.0, 4.0], [2.0, 0.0], [3.0, 4.0]]))

    @every_backend
    def test_imtl(self, backend: str) -> None:
        (rgb,), (ir,) = by("imtl", [self.rgb], [self.ir], backend)
        # norms 1 and 5: rgb by 2 * 5/6, ir by 2 * 1/6. Norms 1 and 2: by 4/3 and 2/3.
        torch.testing.assert_close(rgb, torch.tensor([[5 / 3, 0.0], [4 / 3, 0.0], [0.0, 0.0]]))
        torch.testing.assert_close(ir, torch.tensor([[-1.0, 4 / 3], [4 / 3, 0.0], [3.0, 4.0]]))

    def test_matrices(self) -> None:
        gram = torch.tensor([[1.0, 25.0, -3.0]]).double()
        assert PCGrad()(gram, None, Layout.of([1])).tolist() == [[[1.0, 0.12], [3.0, 1.0]]]
        (diagonal,) = IMTL()(gram, None, Layout.of([1]))
        torch.testing.assert_close(diagonal, torch.diag(torch.tensor([10 / 6, 2 / 6]).double()))


class TestLaws:
    rgb, ir = cases.twins(64, 30, agreement=-0.1)

    @every_backend
    def test_pcgrad_leaves_rows_without_a_conflict_alone(self, backend: str) -> None:
        new = by("pcgrad", self.rgb, self.ir, backend)
        agree = (self.rgb[0].double() * self.ir[0].double()).sum(1) >= 0
        assert 0 < int(agree.sum()) < 64
        for a, b in zip((*new[0], *new[1]), (*self.rgb, *self.ir), strict=True):
            assert torch.equal(a[agree], b[agree])
            assert (a[~agree] != b[~agree]).any(1).all()

    @every_backend
    def test_after_pcgrad_a_row_is_orthogonal_to_the_others_old_row(self, backend: str) -> None:
        new_rgb, new_ir = (side[0].double() for side in by("pcgrad", self.rgb, self.ir, backend))
        old_rgb, old_ir = self.rgb[0].double(), self.ir[0].double()
        apart = (old_rgb * old_ir).sum(1) < 0
        for new, other in ((new_rgb, old_ir), (new_ir, old_rgb)):
            cosine = torch.cosine_similarity(new, other)[apart]
            assert cosine.abs().max() < RESULT[torch.float32]

    @every_backend
    def test_after_imtl_both_norms_are_equal(self, backend: str) -> None:
        rgb, ir = self.rgb, [x * 10 for x in self.ir]
        new_rgb, new_ir = (side[0].double() for side in by("imtl", rgb, ir, backend))
        torch.testing.assert_close(
            new_rgb.norm(dim=1), new_ir.norm(dim=1), rtol=RESULT[torch.float32], atol=0
        )
        # 2 |rgb| |ir| / (|rgb| + |ir|), the harmonic mean, in the old directions
        a, b = rgb[0].double().norm(dim=1), ir[0].double().norm(dim=1)
        torch.testing.assert_close(
            new_rgb.norm(dim=1), 2 * a * b / (a + b), rtol=RESULT[torch.float32], atol=0
        )

    @every_backend
    @pytest.mark.parametrize("rule", ["pcgrad", "imtl"])
    def test_swapping_the_modalities_swaps_the_result(self, rule: str, backend: str) -> None:
        new = by(rule, self.rgb, self.ir, backend)
        swapped = by(rule, self.ir, self.rgb, backend)
        assert torch.equal(new[0][0], swapped[1][0])
        assert torch.equal(new[1][0], swapped[0][0])

    @every_backend
    @pytest.mark.parametrize("rule", ["pcgrad", "imtl"])
    def test_a_layer_with_an_inf_or_nan_is_left_alone(self, rule: str, backend: str) -> None:
        rgb, ir = cases.AWKWARD["several layers"]
        rgb, ir = clone(rgb), clone(ir)
        rgb[1][3, 0], ir[2][0, 5] = math.inf, math.nan
        new = by(rule, rgb, ir, backend)
        for l in (1, 2):
            assert torch.equal(bits(new[0][l]), bits(rgb[l]))
            assert torch.equal(bits(new[1][l]), bits(ir[l]))
        assert not torch.equal(new[0][0], rgb[0])

    @every_backend
    def test_results_beyond_the_dtype_saturate(self, backend: str) -> None:
        """PCGrad adds up to a whole other row: 6e4 + 6e4 is no float16."""
        rgb = torch.full((1, 4), 6e4).half()
        ir = -rgb.clone()
        ir[0, :1] = 6e4
        (new_rgb,), (new_ir,) = by("pcgrad", [rgb], [ir], backend)
        assert new_rgb.isfinite().all()
        assert new_ir.isfinite().all()
        assert new_rgb[0, 0] == 65504


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rule", ["pcgrad", "imtl"])
@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow) if "several" in n else n for n in cases.AWKWARD],
)
def test_every_backend_agrees_with_exact_arithmetic(
    name: str, rule: str, dtype: torch.dtype
) -> None:
    rgb, ir = ([x.to(dtype) for x in side] for side in cases.AWKWARD[name])
    if not all(x.isfinite().all() for x in (*rgb, *ir)):  # float16 cannot hold the large scales
        pytest.skip(f"{name} is not finite in {dtype}")
    hold_to_exact(rule, (rgb, ir), [by(rule, rgb, ir, backend) for backend in USABLE])


@pytest.mark.parametrize("rule", ["pcgrad", "imtl"])
def test_training_by_a_rule_that_reads_no_reliability_measures_none(rule: str) -> None:
    model = TwoStream()
    ragrad = RaGrad(model.rgb, model.ir, rule=rule)  # type: ignore[arg-type]
    assert ragrad.repa.factors == "none"
    ragrad.backward(loss_of(model))
    grads = [[p.grad.clone() for p in side] for side in (ragrad.pairs.rgb, ragrad.pairs.ir)]
    record = ragrad.correct_()
    assert record.count() > 0
    assert ragrad.repa.reliability is None
    assert ragrad.repa.effect is None
    assert ragrad.repa.state_dict()["mean"] is None
    correct_(*grads, rule=rule)  # type: ignore[arg-type]
    for g, p in zip(grads[0] + grads[1], [*ragrad.pairs.rgb, *ragrad.pairs.ir], strict=True):
        assert torch.equal(g, p.grad)


def test_fractions_of_the_oracle() -> None:
    """The oracle itself, on the case by hand."""
    rgb, ir = oracle.pcgrad(TestByHand.rgb, TestByHand.ir)
    assert rgb[0] == [Fraction(16, 25), Fraction(12, 25)]
    assert ir[0] == [0, 4]
