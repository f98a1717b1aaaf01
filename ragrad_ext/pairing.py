"""Which RGB parameter is the twin of which infrared parameter: `pair_parameters`.

A finder (`by_name`, `by_position`, `by_rule`) lists the matches that two modules, two lists or a
set of rules suggest; `judged` says what speaks against each; the rest is bound in a `Pairs`.
"""

from __future__ import annotations

import difflib
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, NamedTuple, TypeAlias

from torch import nn
from torch.nn.modules.conv import _ConvTransposeNd
from torch.nn.parameter import UninitializedParameter

Rule: TypeAlias = tuple[str, str] | tuple[int, int] | tuple[Sequence[int], Sequence[int]]
Stream: TypeAlias = nn.Module | Iterable[nn.Parameter] | Iterable[str]
Text: TypeAlias = str | Sequence[str] | None

WRAPPERS = ("module", "_orig_mod")  # DataParallel and DistributedDataParallel; torch.compile
NO_TWIN = "no twin of that name"


class LeftOut(NamedTuple):
    """Something that is not paired: its names (None for a missing twin), and why."""

    names: tuple[str | None, str | None]
    reason: str
    detail: str = ""


@dataclass(frozen=True, eq=False)
class Pairs:
    """The paired parameters, in the order of the RGB stream, and what was left out.

    It holds the Parameter objects themselves and leaves nothing on the model, which may be copied,
    pickled, cast or converted to SyncBatchNorm; a copy of a model needs pairs of its own.
    """

    rgb: list[nn.Parameter] = field(repr=False)
    ir: list[nn.Parameter] = field(repr=False)
    names: list[tuple[str, str]]  # as in the model, less a wrapper's leading `module.`
    channel_axes: list[int]  # of the output channels: 0, or 1 in a transposed convolution
    left_out: list[LeftOut]

    def __len__(self) -> int:
        return len(self.names)

    def __str__(self) -> str:
        return table(self)

    def report(self, limit: int | None = 5) -> None:
        """Print what is paired, what is left out and why; `limit` lines a group (None: all)."""
        print(table(self, limit))


def pair_parameters(
    rgb: Stream,
    ir: Stream | None = None,
    *,
    rules: Iterable[Rule] | None = None,
    model: nn.Module | None = None,
    within: Text = None,
    exclude: Text = None,
    min_ndim: int = 2,
) -> Pairs:
    """Find the twins, and report what has none.

    Two modules pair by equal names inside them; two lists, of Parameters or of names in `model`,
    by position; one model pairs with itself by `rules`::

        pair_parameters(model.rgb_backbone, model.ir_backbone)
        pair_parameters(model, rules=[("vis_", "lwir_"), ("bnvis", "bnlwir")], exclude="proj_")
        pair_parameters(model, rules=[(range(0, 10), range(10, 20))], within="model")

    A rule is (rgb, ir), and any of several may match a name:

    - two tokens: the twin's name is the name with one occurrence of the first token (or every
      one) replaced by the second;
    - two layer numbers, or two equally long sequences of them: children of the `nn.Sequential`
      that `within` names (of the model itself without `within`), paired one by one.

    `model` gives two lists their names and channel axes (axis 0 without it). `within` names the
    submodules that both twins must lie in. `exclude` holds patterns (`*` and `?` are wildcards):
    a name in which one occurs is left out. For two modules both mean the names inside them. A
    leading `module.` (DataParallel, DDP) or `_orig_mod.` (torch.compile) never matters.

    Left out, and listed in `Pairs.left_out`: fewer than `min_ndim` dimensions; unequal shape, dtype
    or channel axis; frozen on either side (pair again after unfreezing); no twin; several possible
    twins; a tensor that has two names or that the streams share.

    Raises ValueError when nothing pairs, for an unknown name, lists of unequal length or with the
    same tensor on both sides, a `within` or `exclude` that fits no name, and lazy modules that
    have not run; TypeError for arguments of none of the three forms.
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
    scope = Scope(within, exclude, [side.name for side in found.known])
    pairs = Pairs([], [], [], [], [*found.unused])
    pairs.left_out.extend(record for record in found.lonely if not scope.objection(*record.names))
    for (one, two), why in judged(found, scope, min_ndim):
        if why:
            pairs.left_out.append(LeftOut((one.name, two.name), *why))
            continue
        pairs.rgb.append(one.parameter)
        pairs.ir.append(two.parameter)
        pairs.names.append((one.name, two.name))
        pairs.channel_axes.append(one.axis)
    if not pairs:
        raise ValueError("\n".join(["nothing to pair", table(pairs), *hints(found)]))
    return pairs


class Side(NamedTuple):
    """One parameter under one of its names, and the axis of its output channels."""

    name: str
    parameter: nn.Parameter
    axis: int


Match: TypeAlias = tuple[Side, Side]
Why: TypeAlias = tuple[str, str]  # reason, detail


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside its wrappers, which hold nothing but one child of a wrapper's name."""
    children = list(model.named_children())
    bare = next(model.parameters(recurse=False), None) is None
    if bare and len(children) == 1 and children[0][0] in WRAPPERS:
        return unwrap(children[0][1])
    return model


def unwrapped(text: str, names: Iterable[str]) -> str:
    """`text` without a wrapper's leading `module.`, unless the names really begin with it."""
    for prefix in (f"{wrapper}." for wrapper in WRAPPERS):
        if text.startswith(prefix) and not any(name.startswith(prefix) for name in names):
            return unwrapped(text.removeprefix(prefix), names)
    return text


def parameters_of(model: nn.Module) -> dict[str, Side]:
    """Every parameter under every name that it has; a shared tensor has several."""
    model, sides = unwrap(model), {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        # A parametrised weight lies in a ParametrizationList inside the layer that it belongs to.
        layer = model.get_submodule(re.split(r"(?:^|\.)parametrizations\.", prefix)[0])
        axis = 1 if isinstance(layer, _ConvTransposeNd) else 0
        for local, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            name = f"{prefix}.{local}".lstrip(".")
            flat = isinstance(parameter, UninitializedParameter) or parameter.ndim < 2
            sides[name] = Side(name, parameter, 0 if flat else axis)
    return sides


class Found(NamedTuple):
    """What a finder saw and what it suggests."""

    known: list[Side]  # every parameter in sight
    matches: list[Match]
    lonely: list[LeftOut]  # parameters without a twin; the detail is the name it would have
    unused: list[LeftOut]  # rules that fit no name
    pool: list[str]  # where missing twins were looked for


def by_name(rgb: nn.Module, ir: nn.Module) -> Found:
    """Equal names inside two modules."""
    if unwrap(rgb) is unwrap(ir):
        raise ValueError("rgb and ir are the same module: there is nothing to correct between them")
    left, right = parameters_of(rgb), parameters_of(ir)
    matches = [(left[name], right[name]) for name in left if name in right]
    lonely = [LeftOut((name, None), NO_TWIN, name) for name in left if name not in right]
    lonely += [LeftOut((None, name), NO_TWIN, name) for name in right if name not in left]
    return Found([*left.values(), *right.values()], matches, lonely, [], [*right])


def by_position(rgb: list[Any], ir: list[Any], model: nn.Module | None) -> Found:
    """Equal places in two lists of Parameters, or of names in `model`."""
    if len(rgb) != len(ir):
        raise ValueError(f"lists pair by position, but rgb has {len(rgb)} entries, ir {len(ir)}")
    sides = {} if model is None else parameters_of(model)
    owners = {id(side.parameter): side for side in reversed(sides.values())}

    def look_up(item: object, place: str) -> Side:
        if isinstance(item, str) and model is not None:
            if (name := unwrapped(item, sides)) in sides:
                return sides[name]
            raise ValueError(f"{place}: the model has no parameter {item!r}{closest(name, sides)}")
        if not isinstance(item, nn.Parameter):
            kind = type(item).__name__
            raise TypeError(f"{place} is a {kind}: pass Parameters, or names together with model=")
        if model is not None and id(item) not in owners:
            raise ValueError(f"{place} is no parameter of this model; is it one of a copy?")
        return owners.get(id(item)) or Side(place, item, 0)

    matches = []
    for k, (one, two) in enumerate(zip(rgb, ir, strict=True)):
        match = look_up(one, f"rgb[{k}]"), look_up(two, f"ir[{k}]")
        if match[0].parameter is match[1].parameter:
            same = f"rgb[{k}] and ir[{k}] are the same tensor, {match[0].name}"
            raise ValueError(f"{same}: nothing to correct; drop it from both lists")
        matches.append(match)
    known = [*sides.values()] or [side for match in matches for side in match]
    return Found(known, matches, [], [], [])


def swaps(rules: Iterable[Any], prefixes: Iterable[str], names: Iterable[str]) -> Iterator[Any]:
    """Read the rules as exchanges of text: (rgb, ir, whether only where a name begins)."""
    for rule in rules:
        # Not any sequence: (range(2), range(2, 4)) would read as the layers (0, 1) and (2, 3).
        if not isinstance(rule, tuple | list) or len(rule) != 2:
            raise TypeError(f"a rule is a pair, as in rules=[('vis_', 'lwir_')]; got {rule!r}")
        if all(isinstance(token, str) for token in rule):
            rgb, ir = (unwrapped(token, names) or token for token in rule)
            if not rgb or not ir or rgb == ir:
                raise ValueError(f"rule {rule!r} needs two different tokens, neither empty")
            yield rgb, ir, False
            continue
        left, right = ([*side] if isinstance(side, Iterable) else [side] for side in rule)
        if not all(isinstance(number, int) for number in left + right):
            raise TypeError(f"rule {rule!r} needs two tokens, or layer numbers on both sides")
        if len(left) != len(right):
            raise ValueError(f"rule {rule!r} pairs {len(left)} layers with {len(right)}")
        for i, j in zip(left, right, strict=True):
            if i == j:
                raise ValueError(f"rule {rule!r} makes layer {i} its own twin")
            yield from ((f"{prefix}{i}.", f"{prefix}{j}.", True) for prefix in prefixes)


def exchanged(name: str, old: str, new: str, leading: bool) -> list[str]:
    """The names that `name` may become when one or every `old` in it turns `new`."""
    if leading:
        return [new + name.removeprefix(old)] if name.startswith(old) else []
    parts = name.split(old)
    cuts = range(1, len(parts))
    once = [old.join(parts[:k]) + new + old.join(parts[k:]) for k in cuts]
    return [*once, new.join(parts)] if len(once) > 1 else once


def by_rule(model: nn.Module, rules: Iterable[Rule], within: Text) -> Found:
    """Names inside one model that a rule turns into each other."""
    sides = parameters_of(model)
    twins: dict[str, dict[str, None]] = {name: {} for name in sides}  # sets that keep their order
    expected: dict[tuple[str | None, str | None], str] = {}  # one that fits a rule -> its twin
    unused = []
    for rgb, ir, leading in swaps(rules, Scope(within, None, sides).prefixes, sides):
        forth = {name: names for name in sides if (names := exchanged(name, rgb, ir, leading))}
        back = {name: names for name in sides if (names := exchanged(name, ir, rgb, leading))}
        for name, names in forth.items():
            twins[name] |= {twin: None for twin in names if twin in sides}
        expected |= {(name, None): names[0] for name, names in forth.items()}
        expected |= {(None, name): names[0] for name, names in back.items()}
        if not forth and not back:
            unused.append(LeftOut((rgb, ir), "rule fits no name", rgb))
    matches = [(sides[name], sides[twin]) for name in sides for twin in twins[name]]
    paired = {side.name for match in matches for side in match}
    lonely = [
        LeftOut(names, NO_TWIN, twin)
        for names, twin in expected.items()
        if not paired.intersection(names)
    ]
    return Found([*sides.values()], matches, lonely, unused, [*sides])


def listed(text: Text) -> list[str]:
    return [text] if isinstance(text, str) else list(text or ())


class Scope:
    """Which of a model's names `within` and `exclude` let through."""

    def __init__(self, within: Text, exclude: Text, names: Collection[str]) -> None:
        modules = [f"{module.rstrip('.')}.".lstrip(".") for module in listed(within) or [""]]
        self.prefixes = tuple(unwrapped(module, names) for module in modules)
        self.patterns = [unwrapped(pattern, names) for pattern in listed(exclude)]
        for prefix in filter(None, self.prefixes):
            if not any(f"{name}.".startswith(prefix) for name in names):
                raise ValueError(
                    f"within={prefix[:-1]!r} holds nothing{closest(prefix[:-1], names)}"
                )
        for pattern in self.patterns:
            if not any(fnmatchcase(name, f"*{pattern}*") for name in names):
                raise ValueError(f"exclude={pattern!r} fits no name{closest(pattern, names)}")

    def excluding(self, name: str) -> str | None:
        """The pattern that excludes this name."""
        return next((p for p in self.patterns if fnmatchcase(name, f"*{p}*")), None)

    def objection(self, *names: str | None) -> Why | None:
        for name in filter(None, names):
            if pattern := self.excluding(name):
                return "excluded", pattern
            if not f"{name}.".startswith(self.prefixes):
                return "outside `within`", ""
        return None


def judged(found: Found, scope: Scope, min_ndim: int) -> Iterator[tuple[Match, Why | None]]:
    """Every match with what speaks against it."""
    aliases: dict[int, dict[str, None]] = defaultdict(dict)
    for side in found.known:
        if not scope.excluding(side.name):
            aliases[id(side.parameter)][side.name] = None
    partners: dict[int, list[str]] = defaultdict(list)
    for one, two in found.matches:
        if not scope.objection(one.name, two.name):
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
        why = scope.objection(one.name, two.name) or conflict(one, two)
        yield (one, two), why or mismatch(one, two, min_ndim)


def mismatch(one: Side, two: Side, min_ndim: int) -> Why | None:
    """Why the two tensors themselves are no pair."""
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
    note = f"  ({detail})" if detail and detail not in names else ""
    return f"    {rgb if rgb == ir else label}{note}"


def size(parameter: nn.Parameter) -> str:
    return "×".join(map(str, parameter.shape))


def closest(text: str, names: Collection[str]) -> str:
    """A half-sentence: the names, or parts of names, most like `text`; else the first names."""
    parts = dict.fromkeys(part for name in names for part in (name, *name.split(".")))
    near = difflib.get_close_matches(text, parts)
    return f"; closest: {', '.join(near)}" if near else f"; names here: {', '.join([*names][:3])}"


def hints(found: Found) -> Iterator[str]:
    """Where the twins that were looked for might be."""
    wanted = dict.fromkeys(record.detail for record in found.unused + found.lonely)
    for text in [text for text in wanted if text not in found.pool][:3]:
        yield f"looked for {text}{closest(text, found.pool)}"
    numbered = {m[1] for side in found.known if (m := re.match(r"(.+?)\.\d+\.", side.name))}
    if numbered and any(re.fullmatch(r"\d+\.", record.detail) for record in found.unused):
        yield f"numbered layers lie within {', '.join(map(repr, sorted(numbered)))}"
