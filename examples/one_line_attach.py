"""A training loop that knows nothing of RaGrad, and one line before it."""

import torch
from torch import Tensor, nn

from ragrad_ext import RaGrad


def backbone() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip


class TwoStream(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rgb, self.ir, self.head = backbone(), backbone(), nn.Linear(32, 4)

    def forward(self, rgb: Tensor, ir: Tensor) -> Tensor:
        logits: Tensor = self.head(self.rgb(rgb) + self.ir(ir))
        return logits


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 60) -> float:
    """Somebody's loop. Returns the mean loss of the last 10 steps."""
    losses = []
    for _ in range(steps):
        label = torch.randint(4, (32,))
        rgb, ir = (label.view(-1, 1, 1, 1) / 4 + torch.randn(32, 3, 8, 8) for _ in range(2))
        loss = nn.functional.cross_entropy(model(rgb, ir), label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return sum(losses[-10:]) / 10


def main() -> None:
    for attached in (False, True):
        torch.manual_seed(0)  # the same weights and the same images
        model = TwoStream()
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        if attached:
            ragrad = RaGrad(model.rgb, model.ir).attach(optimizer)  # the line
        loss = train(model, optimizer)
        print(f"{'with' if attached else 'without'} RaGrad: the loss ends at {loss:.4f}")
    assert ragrad.last is not None
    print(f"in the last step {ragrad.last.count()} rows were in conflict")


if __name__ == "__main__":
    main()
