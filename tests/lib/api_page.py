"""The signatures in docs/api.md, written from the code: ``python -m tests.lib.api_page``.

Each is between ``<!-- signature: NAME -->`` and ``<!-- end -->``. The sentences around them
are written by hand.
"""

from __future__ import annotations

import inspect
import re
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, get_origin

PAGE = Path(__file__).parents[2] / "docs" / "api.md"
BLOCK = re.compile(r"(<!-- signature: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
MODULES = (
    "ragrad_ext",
    "ragrad_ext.audit",
    "ragrad_ext.rules",
    "ragrad_ext.estimators",
    "ragrad_ext.estimators.research",
)
WIDTH = 96


class Public(NamedTuple):
    """A public object, and the module with the shortest name that exports it."""

    module: str
    value: Any


@cache
def public() -> dict[str, Public]:
    """Everything public, by its name; modules are searched in the order of `MODULES`."""
    found: dict[str, Public] = {}
    for module in map(import_module, filter(find_spec, MODULES)):
        for name in exported(module):
            found.setdefault(name, Public(module.__name__, getattr(module, name)))
    return found


def called() -> list[str]:
    """The public functions and classes: what has a signature."""
    return [
        name
        for name, (_, value) in public().items()
        if inspect.isfunction(value) or (inspect.isclass(value) and get_origin(value) is None)
    ]


def exported(module: ModuleType) -> list[str]:
    """What ``__all__`` says or, without it, what the module itself defines."""
    own = [n for n, v in vars(module).items() if getattr(v, "__module__", "") == module.__name__]
    return list(getattr(module, "__all__", [n for n in own if not n.startswith("_")]))


def signature(name: str) -> str:
    """How to call what is public under this name, as a block of a page.

    A class is followed by the public methods that it adds to its bases. A protocol that is called
    is shown as it is called.
    """
    module, value = public()[name]
    lines = [] if module == "ragrad_ext" else [f"from {module} import {name}", ""]
    is_call = getattr(value, "_is_protocol", False) and "__call__" in vars(value)
    lines.append(_call(name, value.__call__ if is_call else value))
    if inspect.isclass(value):
        bases = [b for b in value.__mro__[1:] if b.__module__.startswith("ragrad_ext")]
        lines += [
            _call(f".{method}", getattr(value, method))
            for method, member in vars(value).items()
            if not method.startswith("_") and isinstance(member, classmethod | type(_call))
            if not any(hasattr(base, method) for base in bases)
        ]
    return "\n".join(["```", *lines, "```"])


def rewritten(text: str) -> str:
    """The page with every signature written again."""
    return BLOCK.sub(lambda m: f"{m[1]}{signature(m[2])}\n{m[3]}", text)


def _call(name: str, function: Any) -> str:
    found = inspect.signature(function)
    shown = [p for p in found.parameters.values() if p.name != "self"]
    kinds = [p.kind for p in shown]
    parts = [_parameter(p) for p in shown]
    # "*" before the first that must be named, "/" after the last that cannot be
    if inspect.Parameter.KEYWORD_ONLY in kinds and inspect.Parameter.VAR_POSITIONAL not in kinds:
        parts.insert(kinds.index(inspect.Parameter.KEYWORD_ONLY), "*")
    if positional := kinds.count(inspect.Parameter.POSITIONAL_ONLY):
        parts.insert(positional, "/")
    result = found.return_annotation
    gives = "" if result in (found.empty, "None", None) or inspect.isclass(function) else result
    arrow = f" -> {gives}" if gives else ""
    line = f"{name}({', '.join(parts)}){arrow}"
    if len(line) <= WIDTH:
        return line
    return "\n".join([f"{name}(", *(f"    {part}," for part in parts), f"){arrow}"])


def _parameter(p: inspect.Parameter) -> str:
    stars = "*" * (p.kind is p.VAR_POSITIONAL) + "**" * (p.kind is p.VAR_KEYWORD)
    kind = "" if p.annotation is p.empty else f": {p.annotation}"
    default = p.default
    if default is p.empty:
        return f"{stars}{p.name}{kind}"
    value = f'"{default}"' if isinstance(default, str) else repr(default)
    return f"{p.name}{kind} = {value}"


if __name__ == "__main__":
    PAGE.write_text(rewritten(PAGE.read_text()))
