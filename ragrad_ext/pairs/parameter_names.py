"""The names of a model's parameters, and which of them the user means."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple, TypeAlias

from torch import nn
from torch.nn.modules.conv import _ConvTransposeNd
from torch.nn.parameter import UninitializedParameter

Text: TypeAlias = str | Sequence[str] | None
Why: TypeAlias = tuple[str, str]  # reason, detail

WRAPPERS = ("module", "_orig_mod")  # DataParallel and DistributedDataParallel; torch.compile


class Side(NamedTuple):
    """One parameter under one of its names, and the axis of its output channels."""

    name: str
    parameter: nn.Parameter
    axis: int


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside its wrappers, which hold only one child, under a wrapper's name."""
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
        # A parametrised weight is in a ParametrizationList inside the layer that it belongs to.
        layer = model.get_submodule(re.split(r"(?:^|\.)parametrizations\.", prefix)[0])
        axis = 1 if isinstance(layer, _ConvTransposeNd) else 0
        for local, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            name = f"{prefix}.{local}".lstrip(".")
            flat = isinstance(parameter, UninitializedParameter) or parameter.ndim < 2
            sides[name] = Side(name, parameter, 0 if flat else axis)
    return sides


def listed(text: Text) -> list[str]:
    return [text] if isinstance(text, str) else list(text or ())


class NameFilter:
    """Which of a model's names `within` and `exclude` keep.

    Raises:
        ValueError: a `within` or `exclude` that fits no name.
    """

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
        """Why one of these names is left out."""
        for name in filter(None, names):
            if pattern := self.excluding(name):
                return "excluded", pattern
            if not f"{name}.".startswith(self.prefixes):
                return "outside `within`", ""
        return None


def closest(text: str, names: Collection[str]) -> str:
    """End of a sentence: the names, or parts of names, most like `text`; else the first names."""
    parts = dict.fromkeys(part for name in names for part in (name, *name.split(".")))
    near = difflib.get_close_matches(text, parts)
    return f"; closest: {', '.join(near)}" if near else f"; names here: {', '.join([*names][:3])}"
