"""Which RGB parameter is the twin of which infrared parameter: `pair_parameters`.

A finder (finders.py) lists the matches that two modules, two lists or a set of rules suggest.
`judged` says why a match does not hold; the others become `Pairs`.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

from torch import nn
from torch.nn.parameter import UninitializedParameter

from .finders import Found, Match, Rule, by_name, by_position, by_rule
from .parameter_names import NameFilter, Side, Text, Why, closest

Source: TypeAlias = nn.Module | Iterable[nn.Parameter] | Iterable[str]


class LeftOut(NamedTuple):
    """Something that is not paired.

    Attributes:
        names: (rgb, ir), None for a missing twin; of a rule that fits no name, its two texts.
        reason: why, the same for all of a kind.
        detail: what was found, for people to read.
    """

    names: tuple[str | None, str | None]
    reason: str
    detail: str = ""


@dataclass(frozen=True, eq=False)
class Pairs:
    """The paired parameters, in the order of the RGB stream, and what was left out.

    It holds the Parameter objects themselves and stores nothing on the model. The model may be
    copied, pickled, cast or converted to SyncBatchNorm. A copy of a model needs its own pairs.

    Attributes:
        rgb, ir: the parameters, L each.
        names: (rgb, ir) as in the model, without a wrapper's leading `module.`.
        channel_axes: the axis of the output channels: 0, or 1 in a transposed convolution.
        left_out: what is not paired, and why.
    """

    rgb: list[nn.Parameter] = field(repr=False)
    ir: list[nn.Parameter] = field(repr=False)
    names: list[tuple[str, str]]
    channel_axes: list[int]
    left_out: list[LeftOut]

    def __len__(self) -> int:
        return len(self.names)

    def __str__(self) -> str:
        return table(self)

    def report(self, limit: int | None = 5) -> None:
        """Print what is paired, what is left out and why; `limit` lines a group (None: all)."""
        print(table(self, limit))


def pair_parameters(
    rgb: Source,
    ir: Source | None = None,
    *,
    rules: Iterable[Rule] | None = None,
    model: nn.Module | None = None,
    within: Text = None,
    exclude: Text = None,
    min_ndim: int = 2,
) -> Pairs:
    """Find the twins, and report what has none.

    Two modules pair by equal names inside them. Two lists, of Parameters or of names in `model`,
    pair by position. One model pairs with itself by `rules`::

        pair_parameters(model.rgb_backbone, model.ir_backbone)
        pair_parameters(model, rules=[("vis_", "lwir_"), ("bnvis", "bnlwir")], exclude="proj_")
        pair_parameters(model, rules=[(range(0, 10), range(10, 20))], within="model")

    A rule is (rgb, ir), and any of several may match a name:

    - two tokens: the twin's name is the name with one occurrence of the first token (or every
      one) replaced by the second;
    - two layer numbers, or two equally long sequences of them: children of the `nn.Sequential`
      that `within` names (of the model itself without `within`), paired one by one.

    `model` gives two lists their names and channel axes (axis 0 without it). `within` names the
    submodules that both twins must be in. `exclude` holds patterns (`*` and `?` are wildcards):
    a name in which one occurs is left out. For two modules both mean the names inside them. A
    leading `module.` (DataParallel, DDP) or `_orig_mod.` (torch.compile) never matters.

    Left out, and listed in `Pairs.left_out`: fewer than `min_ndim` dimensions; one element a row,
    where the cosine is only a sign (`min_ndim=1` pairs these too); unequal shape, dtype or channel
    axis; frozen on either side (pair again after unfreezing); no twin; several possible twins; a
    tensor that has two names or that the streams share.

    Raises:
        ValueError: nothing pairs; an unknown name; lists of unequal length, or with the same tensor
            on both sides; a `within` or `exclude` that fits no name; a lazy module before its
            first forward.
        TypeError: arguments of none of the three forms.
    """
    if rules is not None and isinstance(rgb, nn.Module) and ir is model is None:
        found = by_rule(rgb, rules, within)
    elif isinstance(rgb, nn.Module) and isinstance(ir, nn.Module) and rules is model is None:
        found = by_name(rgb, ir)
    elif isinstance(rgb, Iterable) and isinstance(ir, Iterable) and rules is None:
        found = by_position([*rgb], [*ir], model)
    else:
        raise TypeError(
            "pass two modules, or two lists of Parameters or of names in model=, or one model with "
            f"rules=; got {type(rgb).__name__} and {type(ir).__name__}"
        )
    kept = NameFilter(within, exclude, [side.name for side in found.known])
    left_out = [LeftOut((rule.rgb, rule.ir), "rule fits no name") for rule in found.unused]
    for names, wanted in found.lonely:
        if not kept.objection(*names):
            detail = "" if wanted in names else f"looked for {wanted}"
            left_out.append(LeftOut(names, "no twin of that name", detail))
    held: list[Match] = []
    for match, why in judged(found, kept, min_ndim):
        if why is None:
            held.append(match)
        else:
            left_out.append(LeftOut((match[0].name, match[1].name), *why))
    pairs = Pairs(
        rgb=[one.parameter for one, _ in held],
        ir=[two.parameter for _, two in held],
        names=[(one.name, two.name) for one, two in held],
        channel_axes=[one.axis for one, _ in held],
        left_out=left_out,
    )
    if not pairs:
        raise ValueError("\n".join(["nothing to pair", table(pairs), *hints(found)]))
    return pairs


def judged(found: Found, kept: NameFilter, min_ndim: int) -> Iterator[tuple[Match, Why | None]]:
    """Every match with the reason why it does not hold; None if it does."""
    aliases: dict[int, dict[str, None]] = defaultdict(dict)
    for side in found.known:
        if not kept.excluding(side.name):
            aliases[id(side.parameter)][side.name] = None
    partners: dict[int, list[str]] = defaultdict(list)
    for one, two in found.matches:
        if not kept.objection(one.name, two.name):
            partners[id(one.parameter)].append(two.name)
            partners[id(two.parameter)].append(one.name)

    def conflict(one: Side, two: Side) -> Why | None:
        if one.parameter is two.parameter:
            return "one tensor in both streams", "nothing to correct"
        for side in (one, two):
            if others := [name for name in aliases[id(side.parameter)] if name != side.name]:
                return "tensor of several names", f"{side.name} is also {', '.join(others)}"
            if len(claims := partners[id(side.parameter)]) > 1:
                return "several possible twins", f"{side.name} has {', '.join(claims)}"
        return None

    for one, two in found.matches:
        why = kept.objection(one.name, two.name) or conflict(one, two)
        yield (one, two), why or mismatch(one, two, min_ndim)


def mismatch(one: Side, two: Side, min_ndim: int) -> Why | None:
    """Why the two tensors themselves are not a pair."""
    for side in (one, two):
        if isinstance(side.parameter, UninitializedParameter):
            raise ValueError(f"{side.name} is a lazy parameter: run the model once, then pair")
    p, q = one.parameter, two.parameter
    if min(p.ndim, q.ndim) < min_ndim:
        return f"fewer than {min_ndim} dimensions", ""
    if p.shape != q.shape:
        return "unequal shapes", f"{size(p)} and {size(q)}"
    if p.dtype != q.dtype:
        return "unequal dtypes", f"{p.dtype} and {q.dtype}"
    if one.axis != two.axis:
        return "unequal channel axes", "only one belongs to a transposed convolution"
    if min_ndim > 1 and p.numel() == p.shape[one.axis]:  # cosine ±1, as of biases
        return "one element a row", size(p)
    frozen = [name for name, side in (("rgb", p), ("ir", q)) if not side.requires_grad]
    return ("frozen", " and ".join(frozen)) if frozen else None


def table(pairs: Pairs, limit: int | None = 5) -> str:
    """The text of `Pairs.report`."""
    groups = {"paired": [*map(entry, pairs.names, map(size, pairs.rgb))]}
    for names, reason, detail in pairs.left_out:
        groups.setdefault(f"left out, {reason}", []).append(entry(names, detail))
    lines = []
    for title, entries in groups.items():
        more = len(entries) - len(entries[:limit])
        lines += [f"{len(entries)} {title}", *entries[:limit], *[f"    … {more} more"] * (more > 0)]
    return "\n".join(lines)


def entry(names: tuple[str | None, str | None], detail: str) -> str:
    rgb, ir = names
    label = f"rgb {rgb}" if ir is None else f"ir {ir}" if rgb is None else f"{rgb} | {ir}"
    note = f"  ({detail})" if detail else ""
    return f"    {rgb if rgb == ir else label}{note}"


def size(parameter: nn.Parameter) -> str:
    return "×".join(map(str, parameter.shape))


def hints(found: Found) -> Iterator[str]:
    """Where the twins might be that were not found."""
    wanted = [rule.rgb for rule in found.unused] + [lonely.wanted for lonely in found.lonely]
    missing = [name for name in dict.fromkeys(wanted) if name not in found.pool]
    for name in missing[:3]:
        yield f"looked for {name}{closest(name, found.pool)}"
    numbered = {m[1] for side in found.known if (m := re.match(r"(.+?)\.\d+\.", side.name))}
    if numbered and any(rule.numbered for rule in found.unused):
        yield f"numbered layers are within {', '.join(map(repr, sorted(numbered)))}; pass within="
