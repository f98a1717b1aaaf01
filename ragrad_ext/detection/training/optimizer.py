"""The optimizer and its learning rate."""

from __future__ import annotations

import math

import torch
from torch import nn

from ..settings import Settings


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
    angle = math.pi * (step - warm) / (settings.epochs * per_epoch - warm)
    return settings.lr * 0.5 * (1 + math.cos(angle))
