"""Twin gradients of which a chosen share of rows conflicts, again and again.

A correction removes the conflicts it finds: called twice on the same tensors it would find none
the second time. So the rows that will be rewritten are kept, and `Twins.restore_` puts them back
between calls, outside the timed region.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ragrad_ext import FirstOrder, Reliability, Repa

from .shapes import Shape

Rows = tuple[Tensor, Tensor]  # of one layer: indices of rows whose weak side is rgb, is ir
BITS = {4: torch.int32, 2: torch.int16}


class Twins:
    """L pairs of gradients, a reliability, and what Eq. 6 must make of them.

    Conflict rows have a cosine of -0.8, half of the others -0.2 and the rest 0.3, so that the mean
    negative cosine is far from all three; reliabilities differ by 0.75 in conflict rows and by
    1/16 elsewhere. Short rows scatter around these cosines, and are still far from their mean.
    Without conflicts no cosine is negative.

    Args:
        shapes: of the layers, channels first.
        conflicts: the share of rows that conflict, spread over layers as evenly as whole rows go.

    Attributes:
        rgb, ir: the gradients, one tensor a layer, as ``.grad`` holds them.
        reliability: in which rgb and ir are the weak side equally often.
        mask: (rows,) bool, the rows that conflict.
    """

    def __init__(
        self,
        shapes: Sequence[Shape],
        conflicts: float,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        draw = torch.Generator(device).manual_seed(0)
        self.rgb: list[Tensor] = []
        self.ir: list[Tensor] = []
        self._rows: list[Rows] = []
        masks, values = [], []
        before = 0
        for shape in shapes:
            channels, after = shape[0], before + shape[0]
            n = int(conflicts * after) - int(conflicts * before)
            before = after
            order = torch.randperm(channels, generator=draw, device=device)
            hit, rest = order[:n], order[n:]
            cosine = torch.full((channels,), 0.3, device=device)
            if conflicts:
                cosine[rest[: len(rest) // 2]] = -0.2
                cosine[hit] = -0.8
            self._rows.append((hit[::2], hit[1::2]))
            masks.append(torch.zeros(channels, dtype=torch.bool, device=device))
            masks[-1][hit] = True
            r = torch.tensor([[0.5], [0.5625]], device=device).repeat(1, channels)
            for weak, rows in enumerate(self._rows[-1]):
                r[weak, rows], r[1 - weak, rows] = 0.125, 0.875
            values.append(r)
            a, b = (torch.randn(shape, generator=draw, device=device) for _ in range(2))
            cosine = cosine.view(-1, *[1] * (len(shape) - 1))
            b.mul_((1 - cosine.square()).sqrt()).addcmul_(cosine, a)
            self.rgb.append(a.mul_(1e-3).to(dtype))
            self.ir.append(b.mul_(1e-3).to(dtype))
        self.mask = torch.cat(masks)
        self.reliability = Reliability([r[0] for r in values], [r[1] for r in values])
        self._kept = self.weak_rows()
        self._bits = self._sums_of_bits()

    @property
    def weights(self) -> int:
        """On one side."""
        return sum(g.numel() for g in self.rgb)

    @property
    def rewritten(self) -> int:
        """Elements in the weak rows of conflicts: what a correction writes."""
        return sum(rows.numel() for side in self._kept for rows in side)

    def weak_rows(self) -> tuple[list[Tensor], list[Tensor]]:
        """A copy of the weak rows of conflicts, by modality and layer."""
        return (
            [g[rows[0]] for g, rows in zip(self.rgb, self._rows, strict=True)],
            [g[rows[1]] for g, rows in zip(self.ir, self._rows, strict=True)],
        )

    def restore_(self) -> None:
        """Undo a correction."""
        for m, side in enumerate((self.rgb, self.ir)):
            for g, rows, kept in zip(side, self._rows, self._kept[m], strict=True):
                if len(kept):
                    g.index_copy_(0, rows[m], kept)

    def copy(self) -> tuple[tuple[list[Tensor], list[Tensor]], Callable[[], None]]:
        """A second (rgb, ir), and what makes it equal to the restored twins again."""
        rgb, ir = ([g.clone() for g in side] for side in (self.rgb, self.ir))

        def restore_() -> None:
            self.restore_()
            torch._foreach_copy_([*rgb, *ir], [*self.rgb, *self.ir])

        return (rgb, ir), restore_

    def intact(self) -> bool:
        """Whether, after ``restore_``, every layer holds the bits that it was made with."""
        return self._sums_of_bits() == self._bits

    def _sums_of_bits(self) -> list[int]:
        sums = [g.view(BITS[g.element_size()]).sum() for g in (*self.rgb, *self.ir)]
        return torch.stack(sums).tolist()

    def repa(self) -> Repa:
        """Statistics whose first step finds the same conflicts, and so does every later one.

        ``E = -sum g theta`` is set by weights that are multiples of the gradients: 1 and -1 in
        conflict rows, 1/4 elsewhere. With gradients that are restored after every step, mu is g
        from step 1 on, so S stays 0 and R with it. The bytes that move are those of any step.
        """
        self.restore_()
        effect = (self.reliability.values - 0.5).sign() * self.mask + 0.25 * ~self.mask
        sides: tuple[list[Tensor], list[Tensor]] = ([], [])
        for m, side in enumerate((self.rgb, self.ir)):
            for g, rows in zip(side, self.reliability.layout.slices(), strict=True):
                x = g.flatten(1).float()
                scale = -effect[m, rows] / x.square().sum(1)
                sides[m].append((x * scale[:, None]).view(g.shape).to(g.dtype))
        return Repa(*sides, effectiveness=FirstOrder())
