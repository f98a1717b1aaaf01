"""What RaGrad found in a step, layer by layer: `ragrad.last` and `ragrad.repa.reliability`."""

import torch
from torch import Tensor, nn

from ragrad_ext import RaGrad


def backbone() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip


class TwoStream(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rgb, self.ir, self.head = backbone(), backbone(), nn.Linear(32, 4)

    def forward(self, rgb: Tensor, ir: Tensor) -> Tensor:
        logits: Tensor = self.head(self.rgb(rgb) + self.ir(ir))
        return logits


def main() -> None:
    torch.manual_seed(0)
    model = TwoStream()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    ragrad = RaGrad(model.rgb, model.ir)
    for _ in range(30):
        label = torch.randint(4, (32,))
        rgb, ir = (label.view(-1, 1, 1, 1) / 4 + torch.randn(32, 3, 8, 8) for _ in range(2))
        optimizer.zero_grad()
        ragrad.backward(nn.functional.cross_entropy(model(rgb, ir), label))
        ragrad.correct_()
        optimizer.step()

    last, measured = ragrad.last, ragrad.repa.reliability
    assert last is not None
    assert measured is not None
    print("layer      rows  conflicts  lowest cosine  R of rgb  R of ir")
    for l, (name, _) in enumerate(ragrad.pairs.names):
        layer = last.layer(l)
        rows = slice(last.offsets[l], last.offsets[l + 1])  # of this layer among all rows
        r_rgb, r_ir = measured.rgb[rows].mean(), measured.ir[rows].mean()
        print(f"{name:9}{layer.mask.numel():6}{layer.count():11}{layer.cosine.min():15.2f}"
              f"{r_rgb:10.2f}{r_ir:9.2f}")  # fmt: skip
    print(f"all      {last.mask.numel():6}{last.count():11}")
    blended = last.strength[last.mask]  # lambda of Eq. 10, between 1/2 and sigmoid(1)
    print(f"lambda of the conflicts: {blended.min():.3f} to {blended.max():.3f}")


if __name__ == "__main__":
    main()
