"""Twins are found in the layouts of real two-stream detectors."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from ragrad_ext import pair_parameters
from ragrad_ext.pairs import LeftOut

from ..lib.pairing_models import FUSED, assert_bound, block, conv, model_of, reasons, tree

# Rules for names, inside one model

TAIL = "layer1.0.conv1.weight"
LAYOUTS = {
    "two attributes": (
        [f"backbone.rgb_backbone.{TAIL}", f"backbone.ir_backbone.{TAIL}"],
        [("rgb_backbone", "ir_backbone")],
    ),
    "two attributes, suffixes": (
        [f"backbone_vis.{TAIL}", f"backbone_lwir.{TAIL}", "neck.conv.weight"],
        [("_vis", "_lwir")],
    ),
    "prefix": (
        ["backbone.vis_layer1.0.conv1.weight", "backbone.lwir_layer1.0.conv1.weight"],
        [("vis_", "lwir_")],
    ),
    "infix": (["stem.bnvis.weight", "stem.bnlwir.weight"], [("bnvis", "bnlwir")]),
    "suffix": (
        ["base.conv1_1_bn_vis.weight", "base.conv1_1_bn_lwir.weight"],
        [("_vis.", "_lwir.")],
    ),
    "only the infrared stream is marked": (
        ["layer1.0.weight", "layer1_ir.0.weight"],
        [("layer1.", "layer1_ir.")],
    ),
    "the token occurs twice, always replaced": (
        ["rgb_backbone.rgb_conv.weight", "ir_backbone.ir_conv.weight"],
        [("rgb_", "ir_")],
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_token_rules(layout: str) -> None:
    names, rules = LAYOUTS[layout]
    model = model_of(names)
    pairs = pair_parameters(model, rules=rules)
    assert pairs.names == [(names[0], names[1])]
    assert_bound(pairs, model)


def test_several_rules_at_once() -> None:
    names = [
        ("backbone.vis_layer1.0.conv1.weight", "backbone.lwir_layer1.0.conv1.weight"),
        ("backbone.bnvis.weight", "backbone.bnlwir.weight"),
        ("backbone.conv1_1_bn_vis.weight", "backbone.conv1_1_bn_lwir.weight"),
    ]
    model = model_of([name for pair in names for name in pair])
    pairs = pair_parameters(
        model, rules=[("vis_", "lwir_"), ("bnvis", "bnlwir"), ("_vis.", "_lwir.")]
    )
    assert pairs.names == names
    assert pairs.left_out == []


def test_within_and_exclude_keep_fusion_out_of_a_loose_rule() -> None:
    model = model_of(FUSED)
    rules = [("vis", "lwir")]
    assert len(pair_parameters(model, rules=rules)) == 3
    pairs = pair_parameters(model, rules=rules, within="backbone", exclude="proj_?_")
    assert pairs.names == [(FUSED[0], FUSED[1])]
    assert pairs.left_out == [
        LeftOut((FUSED[2], FUSED[3]), "excluded", "proj_?_"),
        LeftOut((FUSED[4], FUSED[5]), "outside `within`"),
    ]


def test_within_is_a_whole_module_name() -> None:
    model = model_of(["neck.a_vis", "neck.a_lwir", "neck2.a_vis", "neck2.a_lwir"])
    pairs = pair_parameters(model, rules=[("vis", "lwir")], within="neck")
    assert pairs.names == [("neck.a_vis", "neck.a_lwir")]
    pairs = pair_parameters(model, rules=[("vis", "lwir")], within=["neck", "neck2"])
    assert len(pairs) == 2


def test_two_modules_take_within_and_exclude_too() -> None:
    rgb, ir = (tree(body=conv(), fuse=conv(), head=conv()) for _ in range(2))
    pairs = pair_parameters(rgb, ir, within=["body", "fuse"], exclude=["fuse"])
    assert pairs.names == [("body.weight", "body.weight")]


def test_an_excluded_name_needs_no_twin() -> None:
    model = model_of(["a_vis", "a_lwir", "fuse_vis"])
    pairs = pair_parameters(model, rules=[("vis", "lwir")], exclude="fuse")
    assert pairs.left_out == []


def test_a_rule_that_fits_nothing_is_reported() -> None:
    model = model_of(["a_vis", "a_lwir"])
    pairs = pair_parameters(model, rules=[("vis", "lwir"), ("bnvs", "bnlwir")])
    assert len(pairs) == 1
    assert reasons(pairs) == {"rule fits no name": 1}
    assert pairs.left_out[0].names == ("bnvs", "bnlwir")


# Numbered layers of one Sequential

INTERLEAVED = (
    [*range(5), 13, 14, *range(20, 23)],
    [*range(5, 10), 15, 16, *range(23, 26)],
)
NUMBERED: dict[str, Any] = {
    "offset 10": ([(range(0, 10), range(10, 20))], 20, [(i, i + 10) for i in range(10)]),
    "infrared first": ([(range(10, 20), range(0, 10))], 20, [(i + 10, i) for i in range(10)]),
    "offset 5": ([(range(5), range(5, 10))], 12, [(i, i + 5) for i in range(5)]),
    "interleaved": ([INTERLEAVED], 28, list(zip(*INTERLEAVED, strict=True))),
    "a list of index pairs": ([(0, 2), (1, 3), (6, 5)], 8, [(0, 2), (1, 3), (6, 5)]),
}


@pytest.mark.parametrize("layout", NUMBERED)
def test_numbered_layers(layout: str) -> None:
    rules, layers, expected = NUMBERED[layout]
    model = tree(model=nn.Sequential(*(block() for _ in range(layers))))
    pairs = pair_parameters(model, rules=rules, within="model")
    named = [(f"model.{i}.conv.weight", f"model.{j}.conv.weight") for i, j in expected]
    assert sorted(pairs.names) == sorted(named)
    assert_bound(pairs, model)
    assert reasons(pairs) == {"fewer than 2 dimensions": 2 * len(expected)}


def test_numbers_count_only_the_children_of_within() -> None:
    stages = nn.Sequential(*(nn.Sequential(block(), block()) for _ in range(12)))
    model = tree(body=stages, head=nn.Sequential(conv(), conv()))
    pairs = pair_parameters(model, rules=[(0, 1)], within="body")
    assert pairs.names == [
        ("body.0.0.conv.weight", "body.1.0.conv.weight"),
        ("body.0.1.conv.weight", "body.1.1.conv.weight"),
    ]


def test_a_sequential_itself_needs_no_within() -> None:
    pairs = pair_parameters(nn.Sequential(conv(), nn.ReLU(), conv()), rules=[(0, 2)])
    assert pairs.names == [("0.weight", "2.weight")]


def test_layers_without_parameters_may_be_numbered() -> None:
    model = nn.Sequential(conv(), nn.Upsample(), conv(), nn.Upsample())
    pairs = pair_parameters(model, rules=[(range(0, 2), range(2, 4))])
    assert pairs.names == [("0.weight", "2.weight")]
    assert [record.names for record in pairs.left_out[:1]] == [("1.", "3.")]


def test_tokens_and_numbers_together() -> None:
    model = tree(model=nn.Sequential(conv(), conv()), stem_vis=conv(), stem_lwir=conv())
    pairs = pair_parameters(model, rules=[("vis", "lwir"), (0, 1)], within=["model", "stem_vis"])
    assert pairs.names == [("model.0.weight", "model.1.weight")]  # stem_lwir is outside
    within = ["model", "stem_vis", "stem_lwir"]
    assert len(pair_parameters(model, rules=[("vis", "lwir"), (0, 1)], within=within)) == 2


# Wrappers


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_leading_module_never_matters(wrapped: bool, prefix: str) -> None:
    inner = tree(model=nn.Sequential(conv(), conv()), a_vis=conv(), a_lwir=conv())
    model: Any = nn.DataParallel(inner) if wrapped else inner
    numbered = pair_parameters(model, rules=[(0, 1)], within=f"{prefix}model")
    assert_bound(numbered, inner)
    tokens = pair_parameters(
        model, rules=[(f"{prefix}a_vis", f"{prefix}a_lwir")], exclude=f"{prefix}model"
    )
    assert tokens.names == [("a_vis.weight", "a_lwir.weight")]
    lists = pair_parameters([f"{prefix}a_vis.weight"], [f"{prefix}a_lwir.weight"], model=model)
    assert lists.names == tokens.names
    assert lists.rgb[0] is tokens.rgb[0] is inner.a_vis.weight


def test_within_may_name_the_wrapper_itself() -> None:
    model = nn.DataParallel(nn.Sequential(conv(), conv()))
    assert len(pair_parameters(model, rules=[(0, 1)], within="module")) == 1


def test_a_part_that_is_called_module_is_not_a_wrapper() -> None:
    model = model_of(["module.a_vis", "module.a_lwir", "a_vis", "a_lwir"])
    pairs = pair_parameters(["module.a_vis", "a_vis"], ["module.a_lwir", "a_lwir"], model=model)
    assert pairs.names == [("module.a_vis", "module.a_lwir"), ("a_vis", "a_lwir")]
    assert_bound(pairs, model)


def test_compiled_models_keep_their_names() -> None:
    compiled: Any = tree(
        _orig_mod=model_of(["a_vis", "a_lwir"])
    )  # as torch.compile(model) names it
    model = nn.DataParallel(compiled)
    assert pair_parameters(model, rules=[("vis", "lwir")]).names == [("a_vis", "a_lwir")]
