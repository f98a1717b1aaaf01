"""The rules that have a name."""

from __future__ import annotations

from typing import Literal

from .decide import Rule
from .imtl import IMTL
from .pcgrad import PCGrad
from .ragrad import RaGradRule

RuleName = Literal["ragrad", "pcgrad", "imtl"]
RULES: dict[str, Rule] = {"ragrad": RaGradRule(), "pcgrad": PCGrad(), "imtl": IMTL()}


def rule_of(rule: RuleName | Rule) -> Rule:
    """The rule of that name, or the function that was given.

    Raises:
        ValueError, TypeError: there is no such rule.
    """
    if isinstance(rule, str):
        if rule not in RULES:
            names = ", ".join(f'"{name}"' for name in RULES)
            raise ValueError(
                f'rule "{rule}" is unknown; choose one of {names}, or pass a function of '
                "(gram, reliability, layout)"
            )
        return RULES[rule]
    if isinstance(rule, type) or not callable(rule):
        found = f"the class {rule.__name__}" if isinstance(rule, type) else type(rule).__name__
        raise TypeError(
            f"rule is {found}; pass a name, an instance such as RaGradRule(), or a function of "
            "(gram, reliability, layout)"
        )
    return rule
