"""RaGrad in a training loop of your own: three lines, marked 1, 2 and 3."""

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


def batch(size: int = 32) -> tuple[Tensor, Tensor, Tensor]:
    """Noisy images whose brightness is the class; rgb has twice the noise."""
    label = torch.randint(4, (size,))
    bright = label.view(-1, 1, 1, 1) / 4
    rgb, ir = (bright + noise * torch.randn(size, 3, 8, 8) for noise in (2.0, 1.0))
    return rgb, ir, label


def main() -> None:
    torch.manual_seed(0)
    model = TwoStream()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    ragrad = RaGrad(model.rgb, model.ir)  # 1
    losses = []
    for step in range(80):
        rgb, ir, label = batch()
        loss = nn.functional.cross_entropy(model(rgb, ir), label)
        optimizer.zero_grad()
        ragrad.backward(loss)  # 2, in place of loss.backward()
        found = ragrad.correct_()  # 3, before clipping and the step
        nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        losses.append(loss.item())
        if step % 20 == 19:
            share = found.fraction()  # waits for the device, so only now and then
            print(
                f"step {step}: loss {sum(losses[-20:]) / 20:.3f}, {share:.1%} of rows in conflict"
            )


if __name__ == "__main__":
    main()
