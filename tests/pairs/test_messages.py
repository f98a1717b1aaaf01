"""The report of pairing, and its errors for bad input."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from ragrad_ext import pair_parameters

from ..lib.pairing_models import FUSED, block, conv, model_of, tree

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


def test_the_report_names_the_twin_that_was_looked_for() -> None:
    names = ["a_vis", "a_lwir", "b_vis"]
    pairs = pair_parameters(model_of(names), rules=[("vis", "lwir"), ("day", "night")])
    assert str(pairs).splitlines()[-4:] == [
        "1 left out, rule fits no name",
        "    day | night",
        "1 left out, no twin of that name",
        "    rgb b_vis  (looked for b_lwir)",
    ]


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


def test_modules_without_a_common_name_get_the_closest_one() -> None:
    rgb, ir = model_of(["layer1.conv.weight"]), model_of(["body.layer1.conv.weight", "other"])
    with pytest.raises(ValueError, match=r"layer1.conv.weight; closest: body.layer1.c.*$"):
        pair_parameters(rgb, ir)


def test_rules_that_fit_nothing_get_the_closest_names() -> None:
    model = model_of(["body.vis_layer1.weight", "body.lwir_layer1.weight"])
    with pytest.raises(ValueError, match=r"looked for body.viz_\w+.weight; closest: body.vis_"):
        pair_parameters(model, rules=[("viz_layer1", "lwir_layer1")])
    with pytest.raises(ValueError, match="looked for viz_layer1; closest: vis_layer1"):
        pair_parameters(model, rules=[("viz_layer1", "ir_layer1_")])
    with pytest.raises(
        ValueError, match=r"body.ir_layer1.weight; closest: body.lwir_layer1.weight"
    ):
        pair_parameters(model, rules=[("vis_", "ir_")])


def test_numbers_without_within_get_a_hint_where_numbers_are() -> None:
    model = tree(model=nn.Sequential(conv(), conv()))
    with pytest.raises(ValueError, match="numbered layers are within 'model'; pass within="):
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
