"""RaGrad's own rule, Eq. 6-10: literal, the reference of all kernels that fuse it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from ..rows.layout import Layout
from .gram import cosine_similarity, matrices

Identify = Literal["dual", "cosine"]
Resolve = Literal["blend", "project"]


class Thresholds(NamedTuple):
    """Eq. 6: what a conflict is measured by, layer by layer.

    Attributes:
        cosine: mu_cos, (L,) float64: the mean of the strictly negative cosines; nan without any.
        gap: mu_R, (L,) float64: the mean gap of all rows.
    """

    cosine: Tensor
    gap: Tensor


@dataclass(frozen=True)
class RaGradRule:
    """Where two rows point apart and one is clearly more reliable, the weak one is corrected.

    Args:
        identify: ``"dual"``: Eq. 6. ``"cosine"``: every row with a negative cosine conflicts
            (Table 7, without DCCI).
        resolve: ``"blend"``: Eq. 8-10. ``"project"``: Eq. 8 alone (Table 7, without RGGC).
        eps: guards Eq. 8 and 10 against 0/0; not meant to change any other result.

    Raises:
        ValueError: an option is unknown.
    """

    identify: Identify = "dual"
    resolve: Resolve = "blend"
    eps: float = 1e-30
    reads_reliability: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name, choices in (("identify", get_args(Identify)), ("resolve", get_args(Resolve))):
            if (value := getattr(self, name)) not in choices:
                raise ValueError(f"{name}={value!r} is unknown; choose one of {choices}")
        if not 0 < self.eps < float("inf"):
            raise ValueError(
                f"eps={self.eps!r} cannot guard a division; pass a small positive number"
            )

    def __call__(self, gram: Tensor, reliability: Tensor, layout: Layout, /) -> Tensor:
        """As `Rule`."""
        thresholds = thresholds_of(layer_sums(gram, reliability, layout))
        return self.matrices(gram, reliability, layout, thresholds)

    def matrices(
        self, gram: Tensor, reliability: Tensor, layout: Layout, thresholds: Thresholds
    ) -> Tensor:
        """Eq. 6-10 by given thresholds, (rows, 2, 2) float64."""
        n_rgb, n_ir, dot = gram.unbind(1)
        r_rgb, r_ir = reliability.double()
        cosine, gap = cosine_similarity(gram), (r_rgb - r_ir).abs()
        conflict = cosine < 0
        if self.identify == "dual":
            mu_cos, mu_gap = (layout.to_rows(x) for x in thresholds)
            conflict = (cosine < mu_cos) & (gap > mu_gap)  # Eq. 6

        rgb_is_reliable = r_rgb >= r_ir  # Eq. 7; a tie is possible only under identify="cosine"
        n_strong = torch.where(rgb_is_reliable, n_rgb, n_ir)
        # The new weak row as its shares of the old weak row and of the strong one.
        one, zero = torch.ones_like(dot), torch.zeros_like(dot)
        of_weak, of_strong = one, -dot / (n_strong + self.eps)  # Eq. 8
        lam = self.strength(reliability)
        of_weak, of_strong = (1 - lam) * of_weak, (1 - lam) * of_strong + lam  # Eq. 9

        rgb_is_weak, ir_is_weak = conflict & ~rgb_is_reliable, conflict & rgb_is_reliable
        return matrices(
            torch.where(rgb_is_weak, of_weak, one),
            torch.where(rgb_is_weak, of_strong, zero),
            torch.where(ir_is_weak, of_strong, zero),
            torch.where(ir_is_weak, of_weak, one),
        )

    def strength(self, reliability: Tensor) -> Tensor:
        """Eq. 10: lambda, (rows,) float64 in [1/2, sigmoid(1)]; 0 under ``resolve="project"``."""
        r_rgb, r_ir = reliability.double()
        if self.resolve == "project":
            return torch.zeros_like(r_rgb)
        return torch.sigmoid((r_rgb - r_ir).abs() / (r_rgb + r_ir + self.eps))


def layer_sums(gram: Tensor, reliability: Tensor, layout: Layout) -> Tensor:
    """The sums of Eq. 6 over the rows of each layer, (L, 4) float64.

    Columns: the negative cosines, how many they are, the gaps, and how many rows there are. Sums
    of parts of a layer, as sharded training has them, add up to those of the whole.
    """
    cosine = cosine_similarity(gram)
    gap = (reliability[0].double() - reliability[1].double()).abs()
    negative = cosine < 0
    columns = torch.where(negative, cosine, 0.0), negative.double(), gap, torch.ones_like(gap)
    return torch.stack([layout.sum_by_layer(x) for x in columns], 1)


def thresholds_of(sums: Tensor) -> Thresholds:
    """The means of Eq. 6 from `layer_sums`."""
    cosines, negatives, gaps, rows = sums.unbind(1)
    # 0/0 = nan where no cosine is negative, and no cosine is below that.
    return Thresholds(cosines / negatives, gaps / rows)
