"""Twins of two modules or two lists are found, and nothing else is paired."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import nn

from ragrad_ext import pair_parameters
from ragrad_ext.pairs import LeftOut

from ..lib.pairing_models import assert_bound, block, conv, model_of, reasons, tree

# Two modules


def test_two_modules_pair_by_relative_name() -> None:
    rgb: Any = nn.Sequential(block(), block())
    ir: Any = nn.Sequential(block(), block())
    pairs = pair_parameters(rgb, ir)
    assert pairs.names == [("0.conv.weight", "0.conv.weight"), ("1.conv.weight", "1.conv.weight")]
    assert pairs.rgb == [rgb[0].conv.weight, rgb[1].conv.weight]
    assert pairs.ir == [ir[0].conv.weight, ir[1].conv.weight]
    assert pairs.channel_axes == [0, 0]
    assert reasons(pairs) == {"fewer than 2 dimensions": 4}


def test_min_ndim_may_be_lowered() -> None:
    pairs = pair_parameters(block(), block(), min_ndim=1)
    assert len(pairs) == 3
    assert pairs.left_out == []


def test_modules_may_be_wrapped_on_one_side() -> None:
    pairs = pair_parameters(nn.DataParallel(block()), block())
    assert pairs.names == [("conv.weight", "conv.weight")]


def test_twins_missing_on_either_side_are_reported() -> None:
    pairs = pair_parameters(
        tree(shared=conv(bias=False), only_rgb=conv(bias=False)),
        tree(shared=conv(bias=False), only_ir=conv(bias=False)),
    )
    assert pairs.names == [("shared.weight", "shared.weight")]
    assert [record.names for record in pairs.left_out] == [
        ("only_rgb.weight", None),
        (None, "only_ir.weight"),
    ]


# Two lists


def test_lists_of_parameters_pair_by_position() -> None:
    rgb, ir = tree(stem=conv(), body=conv()), tree(first=conv(), second=conv())
    pairs = pair_parameters(rgb.parameters(), ir.parameters())
    assert pairs.rgb == [rgb.stem.weight, rgb.body.weight]
    assert pairs.ir == [ir.first.weight, ir.second.weight]
    assert pairs.names == [("rgb[0]", "ir[0]"), ("rgb[2]", "ir[2]")]


def test_a_model_gives_lists_their_names_and_axes() -> None:
    model = tree(a=nn.ConvTranspose2d(4, 6, 2), b=nn.ConvTranspose2d(4, 6, 2))
    lists = [model.a.weight], [model.b.weight]
    assert pair_parameters(*lists).channel_axes == [0]
    pairs = pair_parameters(*lists, model=model)
    assert pairs.channel_axes == [1]
    assert pairs.names == [("a.weight", "b.weight")]


def test_lists_keep_the_order_that_the_user_gave() -> None:
    model = model_of(["a", "b", "c", "d"])
    pairs = pair_parameters(["d", "a"], ["b", "c"], model=model)
    assert pairs.names == [("d", "b"), ("a", "c")]
    assert_bound(pairs, model)


# Channel axes


@pytest.mark.parametrize("kind", ["plain", "parametrized", "weight_v", "root"])
def test_transposed_convolutions_have_their_channels_on_axis_1(kind: str) -> None:
    def up() -> Any:
        layer = nn.ConvTranspose2d(4, 4, 2)
        if kind == "parametrized":
            nn.utils.parametrizations.weight_norm(layer)
        elif kind == "weight_v":
            with pytest.warns(FutureWarning):
                nn.utils.weight_norm(layer)
        return layer if kind == "root" else tree(up=layer, conv=conv())

    pairs = pair_parameters(up(), up(), min_ndim=1)
    axes = dict(zip((rgb for rgb, _ in pairs.names), pairs.channel_axes, strict=True))
    big = [name for name, weight in zip(axes, pairs.rgb, strict=True) if weight.ndim > 1]
    assert {name: axes[name] for name in big} == {name: int("conv" not in name) for name in big}
    assert all(axes[name] == 0 for name in axes if "bias" in name)


def test_a_transposed_and_a_plain_convolution_are_not_twins() -> None:
    rgb = tree(a=conv(), b=conv())
    ir = tree(a=conv(), b=nn.ConvTranspose2d(4, 4, 3))
    assert reasons(pair_parameters(rgb, ir, min_ndim=2))["unequal channel axes"] == 1


# Left out


def test_unequal_stems_and_dtypes_are_left_out() -> None:
    rgb = tree(stem=conv(3), body=conv(), last=conv())
    ir = tree(stem=conv(1), body=conv(), last=conv().half())
    pairs = pair_parameters(rgb, ir)
    assert pairs.names == [("body.weight", "body.weight")]
    large = [record for record in pairs.left_out if "weight" in str(record.names)]
    assert large == [
        LeftOut(("stem.weight", "stem.weight"), "unequal shapes", "4×3×3×3 and 4×1×3×3"),
        LeftOut(
            ("last.weight", "last.weight"), "unequal dtypes", "torch.float32 and torch.float16"
        ),
    ]


@pytest.mark.parametrize(
    ("shape", "paired"),
    [((4, 1, 1, 1), False), ((4, 1), False), ((1, 1), False), ((1, 4), True), ((4, 1, 2), True)],
)
def test_one_element_a_row_is_left_out(shape: tuple[int, ...], paired: bool) -> None:
    rgb, ir = ([nn.Parameter(torch.zeros(s)) for s in (shape, (2, 2))] for _ in range(2))
    pairs = pair_parameters(rgb, ir)
    assert len(pairs) == 1 + paired
    left_out = LeftOut(("rgb[0]", "ir[0]"), "one element a row", "×".join(map(str, shape)))
    assert pairs.left_out == ([] if paired else [left_out])
    assert len(pair_parameters(rgb, ir, min_ndim=1)) == 2


@pytest.mark.parametrize(
    ("layer", "norm_axis", "rows_of_one"),
    [(nn.Conv2d, 0, True), (nn.ConvTranspose2d, 1, True), (nn.ConvTranspose2d, 0, False)],
)
def test_the_magnitudes_of_weight_norm_are_left_out(
    layer: Any, norm_axis: int, rows_of_one: bool
) -> None:
    """A transposed convolution normalised over its inputs has all magnitudes in one row."""
    rgb, ir = (
        nn.utils.parametrizations.weight_norm(layer(4, 4, 3, bias=False), dim=norm_axis)
        for _ in range(2)
    )
    magnitude, direction = (f"parametrizations.weight.original{k}" for k in (0, 1))
    names = [name for name, _ in pair_parameters(rgb, ir).names]
    assert names == ([direction] if rows_of_one else [magnitude, direction])


@pytest.mark.parametrize(
    ("rgb_frozen", "ir_frozen", "detail"),
    [(True, False, "rgb"), (False, True, "ir"), (True, True, "rgb and ir")],
)
def test_frozen_twins_are_left_out(rgb_frozen: bool, ir_frozen: bool, detail: str) -> None:
    rgb, ir = tree(a=conv(), b=conv()), tree(a=conv(), b=conv())
    rgb.a.requires_grad_(not rgb_frozen)
    ir.a.requires_grad_(not ir_frozen)
    pairs = pair_parameters(rgb, ir)
    assert pairs.names == [("b.weight", "b.weight")]
    assert LeftOut(("a.weight", "a.weight"), "frozen", detail) in pairs.left_out


def test_a_layer_that_both_streams_share_is_left_out() -> None:
    shared = conv(bias=False)
    pairs = pair_parameters(tree(a=conv(), last=shared), tree(a=conv(), last=shared))
    assert pairs.names == [("a.weight", "a.weight")]
    assert reasons(pairs)["one tensor in both streams"] == 1


def test_a_tensor_of_two_names_is_left_out() -> None:
    rgb, ir = (tree(a=conv(bias=False), b=conv(bias=False), c=conv(bias=False)) for _ in range(2))
    rgb.b.weight = rgb.a.weight
    pairs = pair_parameters(rgb, ir)
    assert pairs.names == [("c.weight", "c.weight")]
    assert [record.detail for record in pairs.left_out] == [
        "a.weight is also b.weight",
        "b.weight is also a.weight",
    ]


def test_a_tensor_shared_across_the_streams_under_another_name_is_left_out() -> None:
    rgb, ir = (tree(a=conv(bias=False), b=conv(bias=False), c=conv(bias=False)) for _ in range(2))
    ir.b.weight = rgb.a.weight
    pairs = pair_parameters(rgb, ir)
    assert pairs.names == [("c.weight", "c.weight")]


def test_a_tensor_shared_with_the_rest_of_the_model_is_left_out() -> None:
    model = tree(
        body=tree(a_vis=conv(), a_lwir=conv(), b_vis=conv(), b_lwir=conv()), head=tree(top=conv())
    )
    model.head.top.weight = model.body.a_vis.weight
    pairs = pair_parameters(model, rules=[("vis", "lwir")], within="body")
    assert pairs.names == [("body.b_vis.weight", "body.b_lwir.weight")]
    assert reasons(pairs)["tensor of several names"] == 1


def test_an_alias_can_be_excluded() -> None:
    def stream() -> Any:
        layer = conv()
        return tree(layer1=layer, layers=nn.ModuleList([layer]))

    rgb, ir = stream(), stream()
    with pytest.raises(ValueError, match=r"layer1.weight is also layers.0.weight"):
        pair_parameters(rgb, ir)
    assert pair_parameters(rgb, ir, exclude="layers.").names == [("layer1.weight",) * 2]


def test_a_parameter_listed_twice_is_left_out() -> None:
    a, b, c, d, e = (nn.Parameter(torch.zeros(2, 2)) for _ in range(5))
    pairs = pair_parameters([a, a, d], [b, c, e])
    assert pairs.names == [("rgb[2]", "ir[2]")]
    model = model_of(["a", "b", "c", "d", "e"])
    pairs = pair_parameters(["a", "a", "d"], ["b", "b", "e"], model=model)
    assert pairs.names == [("d", "e")]
    assert reasons(pairs) == {"several possible twins": 2}


def test_several_possible_twins_are_left_out() -> None:
    cross = [f"{a}.to_{b}" for a in ("vis", "lwir") for b in ("vis", "lwir")]
    model = model_of([*cross, "vis.conv", "lwir.conv"])
    pairs = pair_parameters(model, rules=[("vis", "lwir")])
    assert pairs.names == [("vis.conv", "lwir.conv")]
    assert set(reasons(pairs)) == {"several possible twins"}
    named = {name for record in pairs.left_out for name in record.names}
    assert named == set(cross)


def test_a_twin_claimed_twice_is_left_out() -> None:
    model = model_of(["a_rgb", "a_vis", "a_ir", "b_vis", "b_ir"])
    pairs = pair_parameters(model, rules=[("rgb", "ir"), ("vis", "ir")])
    assert pairs.names == [("b_vis", "b_ir")]
    assert reasons(pairs) == {"several possible twins": 2}


def test_no_layer_is_infrared_for_one_and_rgb_for_another() -> None:
    model = nn.Sequential(*(conv(bias=False) for _ in range(5)))
    pairs = pair_parameters(model, rules=[(0, 1), (1, 2), (3, 4)])
    assert pairs.names == [("3.weight", "4.weight")]


def test_two_rules_that_agree_are_not_ambiguous() -> None:
    model = model_of(["bnvis.weight", "bnlwir.weight"])
    rules = [("vis", "lwir"), ("bnvis", "bnlwir")]
    assert len(pair_parameters(model, rules=rules)) == 1


def test_exclusion_resolves_an_ambiguity() -> None:
    model = model_of(["vis.to_vis", "vis.to_lwir", "lwir.to_vis"])
    pairs = pair_parameters(model, rules=[("vis", "lwir")], exclude="lwir.to_vis")
    assert pairs.names == [("vis.to_vis", "vis.to_lwir")]


# Nothing is stored on the model


def test_nothing_is_kept_on_the_model() -> None:
    model = tree(rgb=block(), ir=block())
    before = pickle.dumps(model)
    state = {key: set(vars(module)) for key, module in model.named_modules()}
    pairs = pair_parameters(model.rgb, model.ir)
    assert pickle.dumps(model) == before
    assert {key: set(vars(module)) for key, module in model.named_modules()} == state
    twin = copy.deepcopy(model).half()
    assert twin.rgb.conv.weight is not pairs.rgb[0]
    assert pairs.rgb[0] is model.rgb.conv.weight
    assert pairs.rgb[0].dtype == torch.float32


def test_pairs_survive_conversion_and_casts() -> None:
    model = tree(rgb=block(), ir=block())
    pairs = pair_parameters(model.rgb, model.ir, min_ndim=1)
    model = nn.SyncBatchNorm.convert_sync_batchnorm(model).half().float()
    assert isinstance(model.rgb.bn, nn.SyncBatchNorm)
    for stream, weights in ((model.rgb, pairs.rgb), (model.ir, pairs.ir)):
        held = dict(stream.named_parameters())
        assert all(held[n] is w for (n, _), w in zip(pairs.names, weights, strict=True))
    (loss,) = [sum(p.square().sum() for p in model.parameters())]
    loss.backward()
    assert all(weight.grad is not None for weight in pairs.rgb + pairs.ir)


def test_pairs_and_model_copied_together_stay_together() -> None:
    model = tree(rgb=block(), ir=block())
    pairs = pair_parameters(model.rgb, model.ir)
    model, pairs = copy.deepcopy((model, pairs))
    assert pairs.rgb[0] is model.rgb.conv.weight
    model, pairs = pickle.loads(pickle.dumps((model, pairs)))
    assert pairs.ir[0] is model.ir.conv.weight
