"""What decides a training run. Imports nothing beyond the standard library."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

Method = Literal["none", "ragrad"]
Detector = Literal["fcos", "retinanet", "fasterrcnn"]
Backbone = Literal["light", "resnet18", "resnet50"]
Optimizer = Literal["adamw", "sgd"]
Effectiveness = Literal["gate", "hutchinson", "finite-difference", "fisher"]
Reliability = Literal["both", "effectiveness", "sensitivity"]
Scope = Literal["model", "layer"]

CHOICES: dict[str, tuple[str, ...]] = {
    "method": get_args(Method),
    "detector": get_args(Detector),
    "backbone": get_args(Backbone),
    "optimizer": get_args(Optimizer),
    "effectiveness": get_args(Effectiveness),
    "reliability": get_args(Reliability),
    "scope": get_args(Scope),
}
COUNTS = ("epochs", "batch_size", "scenes", "width", "height", "evaluate_every", "every")
# May change between a checkpoint and its continuation: they say where, not what.
PLACE = ("device", "workers")


@dataclass(frozen=True)
class Settings:
    """Everything that decides one run; the same settings give the same run.

    `data` is a folder of visible/infrared pairs or "scenes" (generated, no download), and
    `labels` the folder of labels inside it, where it holds several. `scenes` and `width` x
    `height` (pixels) apply to generated scenes alone. `seed` decides initial weights, order and
    augmentation, none of which depends on `method`: two methods of one seed are a pair.
    `lr` is reached after `warmup` epochs and then falls to 0 along a cosine; `clip` bounds the
    gradient's norm after the correction (0: no bound). `evaluate_every` counts epochs; the last
    one is always evaluated. The last five belong to RaGrad.

    `init` is a checkpoint to start from instead of random weights, for the same classes; "{seed}"
    in it stands for the seed, so that every seed may have weights of its own.
    """

    data: str = "scenes"
    labels: str | None = None
    method: Method = "ragrad"
    detector: Detector = "fcos"
    backbone: Backbone = "light"
    init: str | None = None
    seed: int = 0
    device: str = "auto"
    workers: int = 0
    epochs: int = 30
    batch_size: int = 4
    optimizer: Optimizer = "adamw"
    lr: float = 2e-3
    weight_decay: float = 0.05
    warmup: float = 1.0
    clip: float = 10.0
    augment: bool = True
    scenes: int = 256
    width: int = 160
    height: int = 128
    evaluate_every: int = 10
    effectiveness: Effectiveness = "gate"
    every: int = 10
    alpha: float = 0.95
    reliability: Reliability = "both"
    scope: Scope = "model"

    def __post_init__(self) -> None:
        for name, known in CHOICES.items():
            if (value := getattr(self, name)) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
        for name in COUNTS:
            _whole(name, getattr(self, name), 1)
        for name in ("seed", "workers"):
            _whole(name, getattr(self, name), 0)
        for name in ("lr", "weight_decay", "warmup", "clip"):
            value = getattr(self, name)
            if not math.isfinite(value) or value < 0 or (name == "lr" and value == 0):
                least = "above 0" if name == "lr" else "0 or more"
                raise ValueError(f"{name} must be a finite number, {least}, got {value!r}")
        if not 0 <= self.alpha < 1:
            raise ValueError(f"alpha must lie in [0, 1), got {self.alpha!r}")
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

    @classmethod
    def load(cls, path: Path) -> Settings:
        """The settings that `settings.json` holds."""
        return cls.from_dict(json.loads(path.read_text()))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Settings:
        """Fields that an older version did not know get their default.

        Raises ValueError for fields that this version does not know.
        """
        if unknown := set(values) - {f.name for f in fields(cls)}:
            raise ValueError(
                f"settings of another version: {', '.join(sorted(unknown))} is unknown here; "
                "use the version that wrote them, or train again with this one"
            )
        return cls(**values)

    def differences(self, other: Settings) -> list[str]:
        """What would make `other` another run, one line each: "lr: 0.001 there, 0.002 here".

        `other` is "there". Device and workers do not count.
        """
        mine, theirs = self.to_dict(), other.to_dict()
        return [
            f"{name}: {theirs[name]!r} there, {mine[name]!r} here"
            for name in mine
            if name not in PLACE and mine[name] != theirs[name]
        ]


def _whole(name: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} must be a whole number, {least} or more, got {value!r}")
