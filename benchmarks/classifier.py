"""A small two-stream classifier, with or without normalisation."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

NORMS: dict[str, Callable[[int], nn.Module]] = {
    "batch": nn.BatchNorm2d,
    "group": lambda channels: nn.GroupNorm(8, channels),
    "none": lambda channels: nn.Identity(),
}


def stream(norm: str) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in ((3, 16), (16, 32), (32, 48), (48, 64)):
        layers += [nn.Conv2d(inputs, outputs, 3, stride=2, padding=1), NORMS[norm](outputs)]
        layers += [nn.ReLU()]
    return nn.Sequential(*layers)


class Classifier(nn.Module):
    """Four convolutions a stream, added, pooled, and a linear layer: 160 rows a stream."""

    def __init__(self, norm: str, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.rgb, self.ir = stream(norm), stream(norm)
            self.head = nn.Linear(64, 3)

    def forward(self, image: Tensor) -> Tensor:
        image = image - 0.5
        fused = self.rgb(image[:, :3]) + self.ir(image[:, 3:].expand(-1, 3, -1, -1))
        return self.head(fused.mean((2, 3)))
