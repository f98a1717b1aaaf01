"""What a run is put together from: device, model, RaGrad, optimizer, learning rate, data."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import nn

import ragrad_ext
from ragrad_ext.estimators.research import Fisher

from ..data.datasets import PairedImages, open_data
from ..models.two_stream import build
from .checkpoint import check_classes, load_checkpoint, load_model_
from .seeds import INIT, METHOD, derive_seed, own_randomness, seed_
from .settings import Settings


def open_split(settings: Settings, split: str | None) -> PairedImages:
    """The "train" or "val" split of the run's data, or all of a folder (None).

    Of scenes, "val" has half as many.
    """
    return open_data(
        settings.data,
        split,
        labels=settings.labels,
        n=settings.scenes if split == "train" else (settings.scenes + 1) // 2,
        size=(settings.width, settings.height),
    )


def pick_device(name: str) -> torch.device:
    """The device of that name; "auto" is the GPU where there is one.

    Raises ValueError, with the reason, for a device that cannot be used.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {name!r} cannot be used: {reason}; try --device cpu") from error
    return device


def make_model(settings: Settings, classes: int) -> nn.Module:
    """The detector with the initial weights of `settings.seed`, on the CPU."""
    cpu = torch.device("cpu")  # drawn there on every machine, so they are the same on all
    with own_randomness(cpu):
        seed_(derive_seed(settings.seed, INIT), cpu)
        return build(settings.detector, settings.backbone, classes)


def make_ragrad(model: Any, settings: Settings) -> ragrad_ext.RaGrad:
    """RaGrad on the model's two streams, as `settings` asks."""
    probes: dict[str, Any] = {
        "every": settings.every,
        "seed": derive_seed(settings.seed, METHOD) % 2**31,
    }
    effectiveness = {
        "gate": lambda: ragrad_ext.Gate(),
        "hutchinson": lambda: ragrad_ext.Hutchinson(**probes),
        "finite-difference": lambda: ragrad_ext.FiniteDifference(**probes),
        "fisher": lambda: Fisher(),
    }[settings.effectiveness]()
    return ragrad_ext.RaGrad(
        model.backbone.rgb,
        model.backbone.ir,
        effectiveness=effectiveness,
        alpha=settings.alpha,
        reliability=settings.reliability,
        scope=settings.scope,
    )


def make_optimizer(model: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    """AdamW, or SGD with momentum 0.9; biases and norm scales are not decayed."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=settings.lr)
    return torch.optim.SGD(groups, lr=settings.lr, momentum=0.9)


def learning_rate(settings: Settings, step: int, per_epoch: int) -> float:
    """Linear over the warm-up, then half a cosine down to 0; a function of the step alone."""
    warm = min(settings.warmup, settings.epochs) * per_epoch
    if step < warm:
        return settings.lr * (step + 1) / (warm + 1)
    return (
        settings.lr
        * 0.5
        * (1 + math.cos(math.pi * (step - warm) / (settings.epochs * per_epoch - warm)))
    )


def load_trained(
    checkpoint: str | Path, data: PairedImages, device: str = "auto"
) -> tuple[nn.Module, Settings]:
    """The model of a checkpoint, for a dataset of the same classes, and the run's settings."""
    path = Path(checkpoint)
    state = load_checkpoint(path)
    settings = Settings.from_dict(state["settings"])
    check_classes(state["classes"], data.classes, path)
    model = make_model(settings, len(data.classes))
    load_model_(model, state["model"], path)
    return model.to(pick_device(device)), settings
