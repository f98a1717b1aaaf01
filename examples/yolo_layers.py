"""Twins by layer number: a YOLO-style model is one Sequential that holds both streams."""

import torch
from torch import Tensor, nn

from ragrad_ext import RaGrad, pair_parameters


def conv(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.SiLU()
    )


class TwoStreamYolo(nn.Module):
    """Layers 0-2 see the RGB image, 3-5 the infrared one; 6 and 7 are stages after the fusion."""

    def __init__(self) -> None:
        super().__init__()
        layers = [conv(3, 8), conv(8, 16), conv(16, 32), conv(1, 8), conv(8, 16), conv(16, 32)]
        self.model = nn.Sequential(*layers, conv(32, 32), conv(32, 32))
        self.head = nn.Linear(32, 4)

    def forward(self, image: Tensor) -> Tensor:
        rgb, ir = image[:, :3], image[:, 3:]
        for layer in range(3):
            rgb, ir = self.model[layer](rgb), self.model[layer + 3](ir)
        fused = self.model[7](self.model[6](rgb + ir))
        logits: Tensor = self.head(fused.mean((2, 3)))
        return logits


def main() -> None:
    torch.manual_seed(0)
    model = TwoStreamYolo()
    # layer i of one stream is the twin of layer i + 3; [(0, 3), (1, 4), (2, 5)] says the same
    pairs = pair_parameters(model, rules=[(range(0, 3), range(3, 6))], within="model")
    pairs.report()

    ragrad = RaGrad(pairs)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(10):
        label = torch.randint(4, (16,))
        image = label.view(-1, 1, 1, 1) / 4 + torch.randn(16, 4, 8, 8)
        optimizer.zero_grad()
        ragrad.backward(nn.functional.cross_entropy(model(image), label))
        found = ragrad.correct_()
        optimizer.step()
    print(f"{len(pairs)} pairs hold {found.mask.numel()} rows, {found.count()} in conflict")


if __name__ == "__main__":
    main()
