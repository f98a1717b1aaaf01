"""What decides a training run: one field per option, with its default, its help and its range.

The command line is made from these fields, so a new option is added here and where it is used.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from ragrad_ext import FiniteDifference, Gate, Hutchinson
from ragrad_ext.estimators.research import Fisher
from ragrad_ext.repa import Scope

Method = Literal["none", "ragrad"]
Detector = Literal["fcos", "retinanet", "fasterrcnn"]
Backbone = Literal["light", "resnet18", "resnet50"]
Optimizer = Literal["adamw", "sgd"]
Reliability = Literal["both", "effectiveness", "sensitivity"]  # Table 3 of the paper

# name -> (estimator of Eq. 1, whether it draws probes: those take `every` and `seed`)
ESTIMATORS: dict[str, tuple[Any, bool]] = {
    "gate": (Gate, False),
    "hutchinson": (Hutchinson, True),
    "finite-difference": (FiniteDifference, True),
    "fisher": (Fisher, False),
}


class Range(NamedTuple):
    """Finite numbers from `least` up to but not including `below`; `above`: without `least`."""

    least: float = 0
    above: bool = False
    below: float = math.inf

    def __contains__(self, value: object) -> bool:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return False
        low = value > self.least if self.above else value >= self.least
        return low and value < self.below and math.isfinite(value)

    def __str__(self) -> str:
        low = f"above {self.least}" if self.above else f"{self.least} or more"
        return low + (f" and below {self.below}" if math.isfinite(self.below) else "")


Allowed = tuple[str, ...] | Range | None


def about(
    text: str, allowed: Allowed = None, *, place: bool = False, argument: str = ""
) -> dict[str, Any]:
    """What is to be known about a field of `Settings`.

    `text` is its help. `allowed` are its values: names, a range of numbers, or None for any. An
    option of `place` says where a run computes, not what: it may change when a run is resumed.
    `argument` names the argument of `ragrad_ext.RaGrad` that gets the value.
    """
    return {"help": text, "allowed": allowed, "place": place, "argument": argument}


@dataclass(frozen=True)
class Settings:
    """Everything that decides one run; the same settings give the same run.

    `seed` decides initial weights, order and augmentation, none of which depends on `method`: two
    methods of one seed are a pair. "{seed}" in `init` stands for the seed, so that every seed can
    start from weights of its own.

    Raises ValueError for a value that an option does not take.
    """

    data: str = field(
        default="scenes",
        metadata=about('folder of visible/infrared pairs, or "scenes": generated, no download'),
    )
    labels: str | None = field(
        default=None, metadata=about("folder of labels inside --data, if there are several")
    )
    method: Method = field(
        default="ragrad", metadata=about("train with or without RaGrad", get_args(Method))
    )
    detector: Detector = field(
        default="fcos", metadata=about("torchvision's detection head", get_args(Detector))
    )
    backbone: Backbone = field(
        default="light",
        metadata=about("of each stream; light trains on two CPU cores", get_args(Backbone)),
    )
    init: str | None = field(
        default=None,
        metadata=about("checkpoint to start from, of the same classes; {seed}: the seed"),
    )
    seed: int = field(
        default=0,
        metadata=about("decides initial weights, order and augmentation, for any method", Range()),
    )
    device: str = field(
        default="auto",
        metadata=about("cpu, cuda, cuda:1, ...; auto: the GPU if there is one", place=True),
    )
    workers: int = field(
        default=0, metadata=about("processes that read images (0: none)", Range(), place=True)
    )
    epochs: int = field(default=30, metadata=about("passes over the training split", Range(1)))
    batch_size: int = field(default=4, metadata=about("pairs per step", Range(1)))
    optimizer: Optimizer = field(
        default="adamw", metadata=about("sgd has a momentum of 0.9", get_args(Optimizer))
    )
    lr: float = field(
        default=2e-3,
        metadata=about(
            "learning rate after the warm-up; it then falls to 0 along a cosine", Range(above=True)
        ),
    )
    weight_decay: float = field(
        default=0.05, metadata=about("of weights; biases and norms are not decayed", Range())
    )
    warmup: float = field(default=1.0, metadata=about("epochs until --lr is reached", Range()))
    clip: float = field(
        default=10.0,
        metadata=about(
            "largest norm of the gradient, after the correction (0: no clipping)", Range()
        ),
    )
    augment: bool = field(default=True, metadata=about("flip, scale and crop both images together"))
    scenes: int = field(
        default=256,
        metadata=about("scenes to generate for training; validation has half as many", Range(1)),
    )
    width: int = field(default=160, metadata=about("of generated scenes, in pixels", Range(1)))
    height: int = field(default=128, metadata=about("of generated scenes, in pixels", Range(1)))
    evaluate_every: int = field(
        default=10,
        metadata=about("epochs between evaluations; the last epoch always has one", Range(1)),
    )
    effectiveness: str = field(
        default="gate", metadata=about("RaGrad: the estimator of Eq. 1", tuple(ESTIMATORS))
    )
    every: int = field(
        default=10,
        metadata=about("RaGrad: steps between two estimates that draw probes", Range(1)),
    )
    alpha: float = field(
        default=0.95,
        metadata=about("RaGrad: decay of the sensitivity, Eq. 4", Range(below=1), argument="alpha"),
    )
    reliability: Reliability = field(
        default="both",
        metadata=about(
            "RaGrad: both factors of Eq. 5 or one of them",
            get_args(Reliability),
            argument="factors",
        ),
    )
    scope: Scope = field(
        default="model",
        metadata=about(
            "RaGrad: Eq. 3 normalises over the model or over each layer",
            get_args(Scope),
            argument="scope",
        ),
    )

    def __post_init__(self) -> None:
        for known in fields(self):
            _check(known.name, getattr(self, known.name), known.default, known.metadata["allowed"])
        if (self.detector, self.effectiveness) == ("fasterrcnn", "hutchinson"):
            raise ValueError(
                "hutchinson differentiates twice, and fasterrcnn's RoIAlign has no second "
                "derivative; choose the effectiveness finite-difference, gate or fisher"
            )

    def change(self, **changes: Any) -> Settings:
        """A copy with some fields changed, checked again."""
        return replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def ragrad_arguments(self) -> dict[str, Any]:
        """The arguments of `ragrad_ext.RaGrad` that are settings as they are."""
        return {a: getattr(self, f.name) for f in fields(self) if (a := f.metadata["argument"])}

    @classmethod
    def load(cls, path: Path) -> Settings:
        """The settings that `settings.json` holds."""
        return cls.from_dict(json.loads(path.read_text()))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Settings:
        """Fields that an older version did not have get their default.

        Raises ValueError for fields that this version does not have.
        """
        if unknown := set(values) - {f.name for f in fields(cls)}:
            raise ValueError(
                f"settings of another version: {', '.join(sorted(unknown))} is unknown here; "
                "use the version that wrote them, or train again with this one"
            )
        return cls(**values)

    def differences(self, other: Settings) -> list[str]:
        """What would make `other` another run, one line each: "lr: 0.001 there, 0.002 here".

        `other` is "there". Options of place do not count.
        """
        mine, theirs = self.to_dict(), other.to_dict()
        return [
            f"{f.name}: {theirs[f.name]!r} there, {mine[f.name]!r} here"
            for f in fields(self)
            if not f.metadata["place"] and mine[f.name] != theirs[f.name]
        ]


def _check(name: str, value: Any, default: Any, allowed: Allowed) -> None:
    if isinstance(allowed, Range):
        whole = isinstance(default, int)
        if value not in allowed or (whole and not isinstance(value, int)):
            kind = "whole" if whole else "finite"
            raise ValueError(f"{name} must be a {kind} number, {allowed}, got {value!r}")
    elif allowed is not None and value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
