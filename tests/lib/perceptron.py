"""A two-stream network small and smooth enough to know its Hessian exactly, in float64."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Perceptron(nn.Module):
    """Two linear layers a stream, 6 and 4 rows, the first before a normalisation, and a head."""

    def __init__(self, norm: str = "group") -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.rgb, self.ir = (self.stream(norm) for _ in range(2))
            self.head = nn.Linear(4, 3)
            draw = torch.Generator().manual_seed(1)
            self.image = torch.randn(2, 8, 3, generator=draw).double()
            self.label = torch.randint(0, 3, (8,), generator=draw)
        self.double()
        for stream in (self.rgb, self.ir):  # or no gain would differ from another
            nn.init.uniform_(stream[1].weight, 0.5, 1.5, generator=draw)  # type: ignore[arg-type]

    @staticmethod
    def stream(norm: str) -> nn.Sequential:
        normalise = nn.BatchNorm1d(6) if norm == "batch" else nn.GroupNorm(2, 6)
        return nn.Sequential(nn.Linear(3, 6), normalise, nn.Tanh(), nn.Linear(6, 4), nn.Tanh())

    def forward(self) -> Tensor:
        """The logits of its one batch, (8, 3)."""
        return self.head(self.rgb(self.image[0]) + self.ir(self.image[1]))

    def loss(self) -> Tensor:
        return nn.functional.cross_entropy(self(), self.label)

    @property
    def weights(self) -> tuple[list[Tensor], list[Tensor]]:
        rgb, ir = ([s[0].weight, s[3].weight] for s in (self.rgb, self.ir))
        return rgb, ir

    @property
    def gains(self) -> list[Tensor]:
        """Of the first layer of either stream."""
        return [self.rgb[1].weight, self.ir[1].weight]  # type: ignore[list-item]

    def hessian(self, w: Tensor) -> Tensor:
        """Of one tensor with itself, (numel, numel), column by column."""
        (g,) = torch.autograd.grad(self.loss(), w, create_graph=True)
        columns = [torch.autograd.grad(x, w, retain_graph=True)[0] for x in g.flatten()]
        return torch.stack([c.flatten() for c in columns])

    def gauss_newton(self, w: Tensor) -> Tensor:
        """Diagonal of ``mean_n J_n^T (diag p - p p^T) J_n``, shaped like ``w``."""
        logits = self()
        total = torch.zeros_like(w)
        for row, p in zip(logits, logits.detach().softmax(1), strict=True):
            jacobian = torch.stack(
                [torch.autograd.grad(x, w, retain_graph=True)[0].flatten() for x in row]
            )
            curvature = p.diag() - p[:, None] * p
            total += (jacobian.T @ curvature @ jacobian).diag().view_as(w)
        return total / len(logits)


def diagonal_form(h: Tensor, w: Tensor) -> Tensor:
    """``1/2 sum_j h_j theta_j^2`` per row, from h shaped like w."""
    return 0.5 * (h * w.detach().square()).flatten(1).sum(1)


def row_form(hessian: Tensor, w: Tensor) -> Tensor:
    """``1/2 theta_i^T H theta_i`` per row; of a gain, a row is one number."""
    rows, n = w.shape[0], w[0].numel()
    blocks = hessian.view(rows, n, rows, n)
    theta = w.detach().reshape(rows, n)
    return 0.5 * torch.stack([t @ blocks[i, :, i] @ t for i, t in enumerate(theta)])
