"""Twins are found in the layouts of real two-stream detectors, and nothing else is paired."""

from __future__ import annotations

import copy
import pickle
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import nn

from ragrad_ext.pairing import LeftOut, Pairs, pair_parameters


def conv(inputs: int = 4, outputs: int = 4, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, bias=bias)


def block() -> Any:
    return nn.Sequential(OrderedDict(conv=conv(bias=False), bn=nn.BatchNorm2d(4)))


def tree(**children: nn.Module) -> Any:
    """A model that only holds things, by attribute name."""
    model = nn.Module()
    for name, child in children.items():
        model.add_module(name, child)
    return model


def model_of(names: Iterable[str], *shape: int) -> Any:
    """A model with one weight (4, 4) under each dotted name."""
    model = nn.Module()
    for name in names:
        *path, last = name.split(".")
        module = model
        for part in path:
            if not hasattr(module, part):
                module.add_module(part, nn.Module())
            module = module.get_submodule(part)
        module.register_parameter(last, nn.Parameter(torch.zeros(shape or (4, 4))))
    return model


def reasons(pairs: Pairs) -> dict[str, int]:
    counts: dict[str, int] = {}
    for record in pairs.left_out:
        counts[record.reason] = counts.get(record.reason, 0) + 1
    return counts


def assert_bound(pairs: Pairs, model: nn.Module) -> None:
    """The lists hold the model's own Parameters, under the names that the pairs state."""
    assert len(pairs) == len(pairs.rgb) == len(pairs.ir) == len(pairs.channel_axes) > 0
    for (rgb, ir), one, two in zip(pairs.names, pairs.rgb, pairs.ir, strict=True):
        assert model.get_parameter(rgb) is one
        assert model.get_parameter(ir) is two


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


# What real detectors look like, by rules inside one model

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
    "the token stands twice, always replaced": (
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


FUSED = [
    "backbone.conv_vis.weight",
    "backbone.conv_lwir.weight",
    "backbone.fuse.proj_q_vis.weight",
    "backbone.fuse.proj_q_lwir.weight",
    "neck.gate_vis.weight",
    "neck.gate_lwir.weight",
]


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


def test_layers_without_parameters_are_no_obstacle() -> None:
    model = nn.Sequential(conv(), nn.Upsample(), conv(), nn.Upsample())
    pairs = pair_parameters(model, rules=[(range(0, 2), range(2, 4))])
    assert pairs.names == [("0.weight", "2.weight")]
    assert [record.names for record in pairs.left_out[:1]] == [("1.", "3.")]


def test_tokens_and_numbers_together() -> None:
    model = tree(model=nn.Sequential(conv(), conv()), stem_vis=conv(), stem_lwir=conv())
    pairs = pair_parameters(model, rules=[("vis", "lwir"), (0, 1)], within=["model", "stem_vis"])
    assert pairs.names == [("model.0.weight", "model.1.weight")]  # stem_lwir lies outside
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


def test_a_part_that_is_called_module_is_no_wrapper() -> None:
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


def test_the_order_of_a_list_is_the_users() -> None:
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


def test_a_transposed_and_a_plain_convolution_are_no_twins() -> None:
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


def test_exclusion_settles_an_ambiguity() -> None:
    model = model_of(["vis.to_vis", "vis.to_lwir", "lwir.to_vis"])
    pairs = pair_parameters(model, rules=[("vis", "lwir")], exclude="lwir.to_vis")
    assert pairs.names == [("vis.to_vis", "vis.to_lwir")]


# The pairs belong to nobody


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


# The report


def test_the_report_groups_by_reason(capsys: pytest.CaptureFixture[str]) -> None:
    rgb, ir = tree(stem=conv(3), body=block()), tree(stem=conv(1), body=block(), more=conv())
    pairs = pair_parameters(rgb, ir)
    pairs.report()
    printed = capsys.readouterr().out
    assert printed == f"{pairs}\n"
    assert str(pairs).splitlines() == [
        "1 paired",
        "    body.conv.weight  (4×4×3×3)",
        "2 left out, no twin of that name",
        "    ir more.weight",
        "    ir more.bias",
        "1 left out, unequal shapes",
        "    stem.weight  (4×3×3×3 and 4×1×3×3)",
        "3 left out, fewer than 2 dimensions",
        "    stem.bias",
        "    body.bn.weight",
        "    body.bn.bias",
    ]


def test_the_report_shortens_long_groups(capsys: pytest.CaptureFixture[str]) -> None:
    rgb, ir = (nn.Sequential(*(conv(bias=False) for _ in range(9))) for _ in range(2))
    pairs = pair_parameters(rgb, ir)
    assert str(pairs).splitlines()[-1] == "    … 4 more"
    pairs.report(limit=None)
    assert len(capsys.readouterr().out.splitlines()) == 10


def test_both_names_are_reported_where_they_differ() -> None:
    pairs = pair_parameters(model_of(["a_vis", "a_lwir"]), rules=[("vis", "lwir")])
    assert "a_vis | a_lwir" in str(pairs)
    assert "Parameter containing" not in repr(pairs)


# Bad input


def test_one_module_twice_is_refused() -> None:
    model = block()
    with pytest.raises(ValueError, match="same module"):
        pair_parameters(model, model)
    with pytest.raises(ValueError, match="same module"):
        pair_parameters(nn.DataParallel(model), model)


def test_streams_that_share_everything_are_refused() -> None:
    shared = conv()
    with pytest.raises(ValueError, match=r"nothing to pair[\s\S]*one tensor in both streams"):
        pair_parameters(tree(a=shared), tree(a=shared))


def test_the_same_tensor_at_one_place_of_two_lists_is_refused() -> None:
    model = model_of(["a", "b", "c"])
    with pytest.raises(ValueError, match=r"rgb\[1\] and ir\[1\] are the same tensor, rgb\[1\]"):
        pair_parameters([model.a, model.b], [model.c, model.b])
    with pytest.raises(ValueError, match="same tensor, b: nothing to correct"):
        pair_parameters(["a", "b"], ["c", "b"], model=model)
    model.c = model.b
    with pytest.raises(ValueError, match="same tensor, b"):
        pair_parameters(["b"], ["c"], model=model)


def test_lists_of_unequal_length_are_refused() -> None:
    weights = [nn.Parameter(torch.zeros(2, 2)) for _ in range(5)]
    with pytest.raises(ValueError, match="rgb has 3 entries, ir 2"):
        pair_parameters(weights[:3], weights[3:])


def test_unknown_names_are_refused_with_the_closest() -> None:
    model = model_of(["backbone.rgb.conv1", "backbone.ir.conv1", "head.cls"])
    with pytest.raises(ValueError, match=r"ir\[0\].*'backbone.it.conv1'; closest: backbone.ir.co"):
        pair_parameters(["backbone.rgb.conv1"], ["backbone.it.conv1"], model=model)


def test_parameters_of_another_model_are_refused() -> None:
    model = model_of(["a", "b"])
    other = copy.deepcopy(model)
    with pytest.raises(ValueError, match=r"ir\[0\] is no parameter of this model"):
        pair_parameters([model.a], [other.b], model=model)


@pytest.mark.parametrize(
    ("within", "exclude", "match"),
    [
        ("backbon", (), "within='backbon' holds nothing; closest: backbone"),
        ("back", (), "within='back'"),
        ((), "proj_k", "exclude='proj_k' fits no name; closest: proj_q"),
    ],
)
def test_within_and_exclude_must_fit(within: str, exclude: str, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        pair_parameters(model_of(FUSED), rules=[("vis", "lwir")], within=within, exclude=exclude)


def test_modules_without_a_common_name_are_told_the_closest() -> None:
    rgb, ir = model_of(["layer1.conv.weight"]), model_of(["body.layer1.conv.weight", "other"])
    with pytest.raises(ValueError, match=r"layer1.conv.weight; closest: body.layer1.c.*$"):
        pair_parameters(rgb, ir)


def test_rules_that_fit_nothing_are_told_the_closest() -> None:
    model = model_of(["body.vis_layer1.weight", "body.lwir_layer1.weight"])
    with pytest.raises(ValueError, match=r"looked for body.viz_\w+.weight; closest: body.vis_"):
        pair_parameters(model, rules=[("viz_layer1", "lwir_layer1")])
    with pytest.raises(ValueError, match="looked for viz_layer1; closest: vis_layer1"):
        pair_parameters(model, rules=[("viz_layer1", "ir_layer1_")])
    with pytest.raises(
        ValueError, match=r"body.ir_layer1.weight; closest: body.lwir_layer1.weight"
    ):
        pair_parameters(model, rules=[("vis_", "ir_")])


def test_numbers_without_within_are_told_where_numbers_are() -> None:
    model = tree(model=nn.Sequential(conv(), conv()))
    with pytest.raises(ValueError, match="numbered layers lie within 'model'"):
        pair_parameters(model, rules=[(0, 1)])


def test_zero_pairs_say_what_was_left_out() -> None:
    with pytest.raises(ValueError, match=r"1 left out, unequal shapes\n +weight  \(4×3"):
        pair_parameters(conv(3), conv(1))
    with pytest.raises(ValueError, match="nothing to pair"):
        pair_parameters([], [])
    with pytest.raises(ValueError, match="nothing to pair"):
        pair_parameters(nn.ReLU(), nn.ReLU())
    with pytest.raises(ValueError, match="nothing to pair"):
        pair_parameters(model_of(["a_vis", "a_lwir"]), rules=[])


def test_lazy_modules_must_have_run() -> None:
    rgb, ir = tree(a=nn.LazyConv2d(4, 3)), tree(a=nn.LazyConv2d(4, 3))
    with pytest.raises(ValueError, match=r"a.weight is a lazy parameter: run the model once"):
        pair_parameters(rgb, ir)
    for stream in (rgb, ir):
        stream.a(torch.zeros(1, 2, 8, 8))
    assert len(pair_parameters(rgb, ir)) == 1


@pytest.mark.parametrize(
    ("rule", "error", "match"),
    [
        ("vis", TypeError, r"a rule is a pair.*got 'vis'"),
        (range(2), TypeError, r"a rule is a pair.*range\(0, 2\)"),
        (("a", "b", "c"), TypeError, "a rule is a pair"),
        (("vis", 1), TypeError, "two tokens, or layer numbers"),
        ((["a"], ["b"]), TypeError, "two tokens, or layer numbers"),
        ((0.0, 1.0), TypeError, "two tokens, or layer numbers"),
        (("vis", "vis"), ValueError, "two different tokens"),
        (("", "_ir"), ValueError, "neither empty"),
        ((range(3), range(3, 5)), ValueError, "pairs 3 layers with 2"),
        ((1, 1), ValueError, "makes layer 1 its own twin"),
    ],
)
def test_malformed_rules_are_refused(rule: Any, error: type[Exception], match: str) -> None:
    model = model_of(["a_vis", "a_lwir"])
    with pytest.raises(error, match=match):
        pair_parameters(model, rules=[rule])


def test_arguments_of_no_form_are_refused() -> None:
    model, other = model_of(["a"]), model_of(["a"])
    calls: list[Any] = [
        ((model,), {}),
        ((model, other), {"rules": [("a", "b")]}),
        ((model, other), {"model": model}),
        ((model, [other.a]), {}),
        (([model.a], [other.a]), {"rules": [("a", "b")]}),
    ]
    for arguments, options in calls:
        with pytest.raises(TypeError, match="pass two modules, or two lists"):
            pair_parameters(*arguments, **options)


@pytest.mark.parametrize("item", [torch.zeros(2, 2), ("a", nn.Parameter(torch.zeros(2, 2))), "a"])
def test_lists_hold_parameters_or_names(item: Any) -> None:
    with pytest.raises(
        TypeError, match=r"rgb\[0\] is a .*: pass Parameters, or names together with"
    ):
        pair_parameters([item], [nn.Parameter(torch.zeros(2, 2))])
