"""Eq. 6-10 as one would write them without a kernel, and PCGrad as it is usually written.

Each corrects the two lists in place by a given reliability, (2, rows) float32, rows layer by
layer. All compute in float32, as the backends do for bfloat16, and give the result of the library
(the benchmark compares them with the reference), except `pcgrad`: it projects the two whole
gradients on each other, which is another method, and is here for its cost.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

Correct = Callable[[Sequence[Tensor], Sequence[Tensor], Tensor], None]
EPS = 1e-30


def loop(grads_rgb: Sequence[Tensor], grads_ir: Sequence[Tensor], reliability: Tensor) -> None:
    """Channel by channel, as the code of a paper reads."""
    start = 0
    for g_rgb, g_ir in zip(grads_rgb, grads_ir, strict=True):
        channels = g_rgb.shape[0]
        rows_rgb = [g_rgb[i].reshape(-1).float() for i in range(channels)]
        rows_ir = [g_ir[i].reshape(-1).float() for i in range(channels)]
        r_rgb, r_ir = reliability[:, start : start + channels].tolist()
        start += channels
        cosines = [
            float(cosine_similarity(a, b, 0)) for a, b in zip(rows_rgb, rows_ir, strict=True)
        ]
        gaps = [abs(a - b) for a, b in zip(r_rgb, r_ir, strict=True)]
        negative = [c for c in cosines if c < 0]
        if not negative:
            continue
        mu_cos, mu_gap = sum(negative) / len(negative), sum(gaps) / channels
        for i in range(channels):
            if cosines[i] < mu_cos and gaps[i] > mu_gap:  # Eq. 6
                rgb_is_weak = r_rgb[i] < r_ir[i]  # Eq. 7
                weak, strong = rows_rgb[i], rows_ir[i]
                if not rgb_is_weak:
                    weak, strong = strong, weak
                lam = torch.sigmoid(torch.tensor(gaps[i] / (r_rgb[i] + r_ir[i] + EPS)))  # Eq. 10
                weak = weak - weak.dot(strong) / (strong.dot(strong) + EPS) * strong  # Eq. 8
                new = (1 - lam) * weak + lam * strong  # Eq. 9
                old = g_rgb if rgb_is_weak else g_ir
                old[i] = new.reshape(old[i].shape)


def vectorised(
    grads_rgb: Sequence[Tensor], grads_ir: Sequence[Tensor], reliability: Tensor
) -> None:
    """Layer by layer, all channels at once, without waiting for the device."""
    start = 0
    for g_rgb, g_ir in zip(grads_rgb, grads_ir, strict=True):
        a, b = (g.float().reshape(g.shape[0], -1) for g in (g_rgb, g_ir))
        r_rgb, r_ir = reliability[:, start : start + a.shape[0]]
        start += a.shape[0]
        dot, n_rgb, n_ir = (a * b).sum(1), a.square().sum(1), b.square().sum(1)
        cosine = dot / (n_rgb.sqrt() * n_ir.sqrt())
        gap = (r_rgb - r_ir).abs()
        negative = cosine < 0
        mu_cos = torch.where(negative, cosine, 0.0).sum() / negative.sum()
        mask = (cosine < mu_cos) & (gap > gap.mean())  # Eq. 6
        lam = torch.sigmoid(gap / (r_rgb + r_ir + EPS))[:, None]  # Eq. 10
        hat_rgb = a - (dot / (n_ir + EPS))[:, None] * b  # Eq. 8
        hat_ir = b - (dot / (n_rgb + EPS))[:, None] * a
        weak_rgb, weak_ir = mask & (r_rgb < r_ir), mask & (r_rgb >= r_ir)  # Eq. 7
        new_rgb = torch.where(weak_rgb[:, None], (1 - lam) * hat_rgb + lam * b, a)  # Eq. 9
        new_ir = torch.where(weak_ir[:, None], (1 - lam) * hat_ir + lam * a, b)
        g_rgb.copy_(new_rgb.reshape(g_rgb.shape))
        g_ir.copy_(new_ir.reshape(g_ir.shape))


def tuned(grads_rgb: Sequence[Tensor], grads_ir: Sequence[Tensor], reliability: Tensor) -> None:
    """As `vectorised`, with reductions that keep no products, and only conflict rows rewritten.

    Which rows these are the host must know: cheap on a CPU, one wait a layer and side on a GPU.
    """
    start = 0
    for g_rgb, g_ir in zip(grads_rgb, grads_ir, strict=True):
        a, b = (g.view(g.shape[0], -1) for g in (g_rgb, g_ir))
        r_rgb, r_ir = reliability[:, start : start + a.shape[0]]
        start += a.shape[0]
        dot = torch.linalg.vecdot(a.float(), b.float())
        l_rgb, l_ir = (torch.linalg.vector_norm(x, dim=1, dtype=torch.float32) for x in (a, b))
        cosine = dot / (l_rgb * l_ir)
        gap = (r_rgb - r_ir).abs()
        negative = cosine < 0
        mu_cos = torch.where(negative, cosine, 0.0).sum() / negative.sum()
        mask = (cosine < mu_cos) & (gap > gap.mean())  # Eq. 6
        lam = torch.sigmoid(gap / (r_rgb + r_ir + EPS))  # Eq. 10
        q_rgb, q_ir = (lam - (1 - lam) * dot / (l.square() + EPS) for l in (l_ir, l_rgb))
        for weak, strong, q, is_weak in ((a, b, q_rgb, r_rgb < r_ir), (b, a, q_ir, r_rgb >= r_ir)):
            rows = (mask & is_weak).nonzero()[:, 0]  # Eq. 7
            new = (1 - lam[rows, None]) * weak[rows] + q[rows, None] * strong[rows]  # Eq. 8 and 9
            weak[rows] = new.to(weak.dtype)


def foreach(grads_rgb: Sequence[Tensor], grads_ir: Sequence[Tensor], reliability: Tensor) -> None:
    """All layers in multi-tensor operators and flat rows; only row sums go layer by layer."""
    a, b = ([g.float().reshape(g.shape[0], -1) for g in side] for side in (grads_rgb, grads_ir))
    channels = torch.tensor([x.shape[0] for x in a])
    layer = torch.arange(len(a)).repeat_interleave(channels).to(reliability.device)
    dot, n_rgb, n_ir = (
        torch.cat([x.sum(1) for x in torch._foreach_mul(x, y)]) for x, y in ((a, b), (a, a), (b, b))
    )
    cosine = dot / (n_rgb.sqrt() * n_ir.sqrt())
    r_rgb, r_ir = reliability
    gap = (r_rgb - r_ir).abs()
    negative = cosine < 0

    def of_layers(rows: Tensor) -> Tensor:
        return torch.zeros(len(a), device=rows.device).index_add_(0, layer, rows)

    mu_cos = of_layers(torch.where(negative, cosine, 0.0)) / of_layers(negative.float())
    mu_gap = of_layers(gap) / of_layers(torch.ones_like(gap))
    mask = (cosine < mu_cos[layer]) & (gap > mu_gap[layer])  # Eq. 6
    lam = torch.sigmoid(gap / (r_rgb + r_ir + EPS))  # Eq. 10
    sizes = channels.tolist()
    new = []
    for weak, strong, n, is_weak in ((a, b, n_ir, r_rgb < r_ir), (b, a, n_rgb, r_rgb >= r_ir)):
        rewritten = mask & is_weak  # Eq. 7
        p = torch.where(rewritten, 1 - lam, 1.0)[:, None].split(sizes)  # Eq. 8 and 9 as p w + q s
        q = torch.where(rewritten, lam - (1 - lam) * dot / (n + EPS), 0.0)[:, None].split(sizes)
        new.append(torch._foreach_add(torch._foreach_mul(weak, p), torch._foreach_mul(strong, q)))
    for grads, rows in zip((grads_rgb, grads_ir), new, strict=True):
        torch._foreach_copy_(
            list(grads), [x.view(g.shape) for x, g in zip(rows, grads, strict=True)]
        )


def pcgrad(grads_rgb: Sequence[Tensor], grads_ir: Sequence[Tensor], reliability: Tensor) -> None:
    """Two tasks, as public implementations have it: flatten, Gram matrix, decide on the host."""
    flat = torch.stack([torch.cat([g.reshape(-1) for g in side]) for side in (grads_rgb, grads_ir)])
    flat = flat.float()
    gram = (flat @ flat.T).tolist()
    new = flat.clone()
    for i, j in ((0, 1), (1, 0)):
        if gram[i][j] < 0:
            new[i] -= gram[i][j] / (gram[j][j] + EPS) * flat[j]
    for side, row in zip((grads_rgb, grads_ir), new, strict=True):
        parts = row.split([g.numel() for g in side])
        for g, part in zip(side, parts, strict=True):
            g.copy_(part.view(g.shape))


def compiled(grads_rgb: Sequence[Tensor], grads_ir: Sequence[Tensor], reliability: Tensor) -> None:
    """`vectorised` by ``torch.compile``, which compiles once per list of shapes."""
    _compiled()(grads_rgb, grads_ir, reliability)


@cache
def _compiled() -> Correct:
    # on first use: who only wants the labels need not load the compiler
    return torch.compile(vectorised, dynamic=False)


class Peer(NamedTuple):
    """A peer of the benchmark: its name in the tables, and its call."""

    label: str
    correct_: Correct


PEERS = {
    "loop": Peer("loop over channels", loop),
    "vectorised": Peer("PyTorch, vectorised layer by layer", vectorised),
    "tuned": Peer("PyTorch, vectorised, conflict rows only", tuned),
    "foreach": Peer("PyTorch, `torch._foreach_*`", foreach),
    "compiled": Peer("PyTorch, `torch.compile` of the vectorised", compiled),
    "pcgrad": Peer("PCGrad on flattened gradients (another method)", pcgrad),
}
