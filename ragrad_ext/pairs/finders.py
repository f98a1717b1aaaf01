"""The matches that two modules, two lists, or rules for one model suggest.

`by_name`, `by_position` and `by_rule` return a `Found`. pairing.py decides which matches hold.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

from torch import nn

from .parameter_names import NameFilter, Side, Text, closest, parameters_of, unwrap, unwrapped

Rule: TypeAlias = tuple[str, str] | tuple[int, int] | tuple[Sequence[int], Sequence[int]]
Match: TypeAlias = tuple[Side, Side]


class Lonely(NamedTuple):
    """A parameter without a twin.

    Attributes:
        names: (rgb, ir), None for the missing twin.
        wanted: the name that the twin would have.
    """

    names: tuple[str | None, str | None]
    wanted: str


class Swap(NamedTuple):
    """A rule, read as an exchange of text in names.

    Attributes:
        rgb, ir: the two texts.
        numbered: whether they are numbers of layers, which count only where a name begins.
    """

    rgb: str
    ir: str
    numbered: bool


class Found(NamedTuple):
    """What a finder saw, and what it suggests.

    Attributes:
        known: every parameter that it saw.
        matches: the pairs that it suggests.
        lonely: parameters without a twin.
        unused: rules that fit no name.
        pool: the names among which missing twins were searched.
    """

    known: list[Side]
    matches: list[Match]
    lonely: list[Lonely]
    unused: list[Swap]
    pool: list[str]


def by_name(rgb: nn.Module, ir: nn.Module) -> Found:
    """Equal names inside two modules."""
    if unwrap(rgb) is unwrap(ir):
        raise ValueError("rgb and ir are the same module: there is nothing to correct between them")
    left, right = parameters_of(rgb), parameters_of(ir)
    matches = [(left[name], right[name]) for name in left if name in right]
    lonely = [Lonely((name, None), name) for name in left if name not in right]
    lonely += [Lonely((None, name), name) for name in right if name not in left]
    return Found([*left.values(), *right.values()], matches, lonely, [], [*right])


def by_position(rgb: list[Any], ir: list[Any], model: nn.Module | None) -> Found:
    """Equal places in two lists of Parameters, or of names in `model`."""
    if len(rgb) != len(ir):
        raise ValueError(
            f"lists pair by position, but rgb has {len(rgb)} entries, ir {len(ir)}; pass two lists "
            "of equal length"
        )
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


def swaps(rules: Iterable[Any], prefixes: Iterable[str], names: Iterable[str]) -> Iterator[Swap]:
    """Read the rules as exchanges of text.

    Raises:
        TypeError, ValueError: a rule that is malformed.
    """
    for rule in rules:
        # Not any sequence: (range(2), range(2, 4)) would read as the layers (0, 1) and (2, 3).
        if not isinstance(rule, tuple | list) or len(rule) != 2:
            raise TypeError(f"a rule is a pair, as in rules=[('vis_', 'lwir_')]; got {rule!r}")
        if all(isinstance(token, str) for token in rule):
            rgb, ir = (unwrapped(token, names) or token for token in rule)
            if not rgb or not ir or rgb == ir:
                raise ValueError(f"rule {rule!r} needs two different tokens, neither empty")
            yield Swap(rgb, ir, numbered=False)
            continue
        left, right = ([*side] if isinstance(side, Iterable) else [side] for side in rule)
        if not all(isinstance(number, int) for number in left + right):
            raise TypeError(f"rule {rule!r} needs two tokens, or layer numbers on both sides")
        if len(left) != len(right):
            raise ValueError(f"rule {rule!r} pairs {len(left)} layers with {len(right)}")
        for i, j in zip(left, right, strict=True):
            if i == j:
                raise ValueError(f"rule {rule!r} makes layer {i} its own twin")
            yield from (
                Swap(f"{prefix}{i}.", f"{prefix}{j}.", numbered=True) for prefix in prefixes
            )


def exchanged(name: str, old: str, new: str, *, numbered: bool) -> list[str]:
    """The names that `name` may become if one or every `old` in it is replaced by `new`."""
    if numbered:
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
    for swap in swaps(rules, NameFilter(within, None, sides).prefixes, sides):
        rgb, ir, numbered = swap
        forth = {
            name: names for name in sides if (names := exchanged(name, rgb, ir, numbered=numbered))
        }
        back = {
            name: names for name in sides if (names := exchanged(name, ir, rgb, numbered=numbered))
        }
        for name, names in forth.items():
            twins[name] |= {twin: None for twin in names if twin in sides}
        expected |= {(name, None): names[0] for name, names in forth.items()}
        expected |= {(None, name): names[0] for name, names in back.items()}
        if not forth and not back:
            unused.append(swap)
    matches = [(sides[name], sides[twin]) for name in sides for twin in twins[name]]
    paired = {side.name for match in matches for side in match}
    lonely = [
        Lonely(names, twin) for names, twin in expected.items() if not paired.intersection(names)
    ]
    return Found([*sides.values()], matches, lonely, unused, [*sides])
