"""Small two-stream networks for the tests."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ragrad_ext import Effectiveness, RaGrad


def stream(norm: str, dropout: float, activation: type[nn.Module]) -> nn.Sequential:
    def normalise(channels: int) -> nn.Module:
        return {
            "batch": nn.BatchNorm2d(channels),
            "group": nn.GroupNorm(2, channels),
            "none": nn.Identity(),
        }[norm]

    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), normalise(6), activation(), nn.Dropout(dropout),
        nn.Conv2d(6, 8, 3, padding=1), normalise(8), activation(), nn.AdaptiveAvgPool2d(1),
    )  # fmt: skip


class TwoStream(nn.Module):
    """Two convolutional streams, added, and a linear classifier."""

    def __init__(
        self,
        norm: str = "batch",
        dropout: float = 0.0,
        activation: type[nn.Module] = nn.ReLU,
        seed: int = 0,
    ) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.rgb, self.ir = (stream(norm, dropout, activation) for _ in range(2))
            self.head = nn.Linear(8, 3)

    def forward(self, rgb: Tensor, ir: Tensor) -> Tensor:
        return self.head((self.rgb(rgb) + self.ir(ir)).flatten(1))


def batch(seed: int = 0, size: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    rgb, ir = (torch.randn(size, 3, 10, 10, generator=g) for _ in range(2))
    return rgb, ir, torch.randint(0, 3, (size,), generator=g)


def loss_of(model: nn.Module, seed: int = 0) -> Tensor:
    rgb, ir, label = batch(seed)
    return nn.functional.cross_entropy(model(rgb, ir), label)


def step(ragrad: RaGrad, model: nn.Module, *micro_batches: int) -> Tensor:
    """E of one step, (2, rows); the weights do not move."""
    model.zero_grad()
    for t in micro_batches:
        ragrad.backward(loss_of(model, t), closure=lambda t=t: loss_of(model, t))  # type: ignore[misc]
    ragrad.correct_()
    assert ragrad.repa.effect is not None
    return ragrad.repa.effect


def watched(estimator: Effectiveness, **options: object) -> tuple[TwoStream, RaGrad]:
    """A new network, and RaGrad on its streams with this estimator."""
    model = TwoStream(**options)  # type: ignore[arg-type]
    return model, RaGrad(model.rgb, model.ir, effectiveness=estimator)


def assert_near(found: Tensor, expected: Tensor, share: float) -> None:
    """The largest error is at most this share of the largest value, which is not 0."""
    assert found.shape == expected.shape
    largest = expected.abs().max()
    assert largest > 0
    assert (found - expected).abs().max() <= share * largest
