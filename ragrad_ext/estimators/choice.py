"""Estimators of effectiveness by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

from .effectiveness import Effectiveness
from .gate import Gate
from .taylor import Hutchinson

Choice = Literal["auto", "paper"]

_MAKE: dict[Choice, Callable[[], Effectiveness]] = {"auto": Gate, "paper": Hutchinson}


def estimator(choice: Effectiveness | Choice) -> Effectiveness:
    """A new estimator of that name. An estimator is returned as it is.

    - ``"auto"``: the one that was measured to order channels best for its price
      (docs/effectiveness.md): `Gate`, for every network tried. It needs no second derivative, no
      closure and no memory. In the graph of the first step it finds what each row allows: the gain
      of a norm, a hook, or the row's own output. ``summary()`` says in one line what it found.
    - ``"paper"``: Eq. 2 by `Hutchinson`. An operator without a second derivative is an error at the
      first loss, before any step.

    Raises:
        ValueError, TypeError: neither an estimator nor one of these names.
    """
    if isinstance(choice, Effectiveness):
        return choice
    if not isinstance(choice, str):
        found = (
            f"the class {choice.__name__}" if isinstance(choice, type) else type(choice).__name__
        )
        raise TypeError(f"effectiveness is {found}; pass an estimator, such as Gate(), or a name")
    if choice not in _MAKE:
        names = " or ".join(f'"{name}"' for name in get_args(Choice))
        raise ValueError(f'effectiveness "{choice}" is unknown; pass {names}, or an estimator')
    return _MAKE[choice]()
