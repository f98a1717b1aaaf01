"""A rule of your own: a function from the Gram matrix of each pair of rows to a 2x2 matrix."""

import torch
from torch import Tensor, nn

from ragrad_ext import RaGrad
from ragrad_ext.rules import Layout


def trust_the_reliable(gram: Tensor, reliability: Tensor, layout: Layout) -> Tensor:
    """Rows with a negative dot product both become their mean, weighted by reliability."""
    r_rgb, r_ir = reliability.double()  # (rows,) each
    dot = gram[:, 2]  # columns: |g_rgb|^2, |g_ir|^2, g_rgb . g_ir
    share = r_rgb / (r_rgb + r_ir).clamp(min=1e-12)
    mean = torch.stack([share, 1 - share], 1)  # (rows, 2): one row of M
    identity = torch.eye(2, dtype=torch.float64)  # for rows that do not change
    return torch.where((dot < 0)[:, None, None], torch.stack([mean, mean], 1), identity)


class Detector(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rgb, self.ir = (
            nn.Sequential(nn.Conv2d(c, 8, 3), nn.ReLU(), nn.Conv2d(8, 16, 3), nn.ReLU())
            for c in (3, 3)
        )
        self.head = nn.Linear(16, 4)

    def forward(self, rgb: Tensor, ir: Tensor) -> Tensor:
        logits: Tensor = self.head((self.rgb(rgb) + self.ir(ir)).mean((2, 3)))
        return logits


def main() -> None:
    torch.manual_seed(0)
    model = Detector()
    ragrad = RaGrad(model.rgb, model.ir, rule=trust_the_reliable)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(5):
        label = torch.randint(4, (16,))
        rgb, ir = (label.view(-1, 1, 1, 1) / 4 + torch.randn(16, 3, 12, 12) for _ in range(2))
        optimizer.zero_grad()
        ragrad.backward(nn.functional.cross_entropy(model(rgb, ir), label))
        found = ragrad.correct_()
        optimizer.step()
    changed = found.layer(1).mask
    twins = ragrad.pairs.rgb[1], ragrad.pairs.ir[1]
    rgb, ir = (p.grad[changed] for p in twins if p.grad is not None)
    print(f"{found.count()} of {found.mask.numel()} rows had a negative dot product")
    print(f"in layer 1 both gradients of those rows are now equal: {torch.equal(rgb, ir)}")


if __name__ == "__main__":
    main()
