"""Decide: a rule, asked for the matrix of every row, and held to what a matrix may be."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from ..rows.conflicts import Conflicts
from ..rows.layout import Layout
from .gram import cosine_similarity
from .imtl import IMTL
from .pcgrad import PCGrad
from .ragrad import RaGradRule, layer_sums, thresholds_of

Reduce = Callable[[Tensor], Tensor]


class Rule(Protocol):
    """One 2x2 matrix per row: ``[g_rgb; g_ir] <- M [g_rgb; g_ir]``.

    A rule that reads no reliability can say so in an attribute ``reads_reliability = False``; then
    none is measured for it, and it is called with None.
    """

    def __call__(self, gram: Tensor, reliability: Tensor, layout: Layout, /) -> Tensor:
        """The matrices of all rows.

        Args:
            gram: (rows, 3) float64, ``|g_rgb|^2, |g_ir|^2, g_rgb . g_ir``; zeros for the rows of a
                skipped pair, and not finite where a gradient is not.
            reliability: (2, rows) float32 in [0, 1], R of Eq. 5, rgb first.
            layout: which rows belong to which layer.

        Returns:
            (rows, 2, 2), floating point: M of every row, the identity where nothing changes.
        """


def reads_reliability(rule: Rule) -> bool:
    """Whether a rule has to be given R."""
    return getattr(rule, "reads_reliability", True)


def decide(
    gram: Tensor,
    reliability: Tensor | None,
    layout: Layout,
    rule: Rule,
    absent: Sequence[slice] = (),
    reduce: Reduce | None = None,
) -> tuple[Tensor, Conflicts]:
    """The matrices of all rows by a rule, and the record of them.

    The rows of a layer that holds an inf or nan keep the identity, and so does a row of zeros. So
    does, under the rules of this package, a row whose matrix is not finite.

    Args:
        gram, reliability, layout: as in `Rule`; reliability may be None for a rule that reads none.
        absent: the rows of pairs that are skipped; their record is all zeros.
        reduce: makes sums over whole layers, (L, k) float64, of this process's own, where other
            processes hold more of their rows; None: this process holds all.

    Returns:
        (rows, 2, 2) float64, and the record. Its ``strength`` is that of Eq. 10 under
        `RaGradRule`, and 0 under any other rule.

    Raises:
        TypeError, ValueError: a rule of one's own returned another shape or dtype, or an inf or
            nan for a row; the row, its layer and the value are named. Reading the values waits
            for the device; nothing else here does.
    """
    finite_row = gram.isfinite().all(1)
    bad = layout.count_by_layer(~finite_row)
    if reduce is not None:
        bad = reduce(bad.double()[:, None])[:, 0]
    finite = layout.to_rows(bad == 0)
    strength = torch.zeros_like(gram[:, 0])
    if isinstance(rule, RaGradRule):
        assert reliability is not None
        sums = layer_sums(gram, reliability, layout)
        thresholds = thresholds_of(sums if reduce is None else reduce(sums))
        matrices = rule.matrices(gram, reliability, layout, thresholds)
        strength = rule.strength(reliability)
    else:
        matrices = rule(gram, reliability, layout)  # type: ignore[arg-type]
    own = not isinstance(rule, RaGradRule | PCGrad | IMTL)
    if own:
        check_matrices(matrices, layout, finite)
    usable = matrices.isfinite().flatten(1).all(1) & finite & (gram[:, :2] != 0).any(1)
    identity = torch.eye(2, dtype=torch.float64, device=gram.device)
    mix = torch.where(usable[:, None, None], matrices.double(), identity)
    mask = (mix != identity).flatten(1).any(1)
    gap = torch.zeros_like(gram[:, 0])
    if reliability is not None:
        gap = (reliability[0].double() - reliability[1].double()).abs()
    for rows in absent:
        gap[rows] = 0
    strength = torch.where(mask, strength, 0.0)
    cosine = torch.where(finite, cosine_similarity(gram), torch.nan)
    return mix, Conflicts(cosine.float(), gap.float(), mask, strength.float(), layout)


def check_matrices(matrices: Tensor, layout: Layout, finite: Tensor) -> None:
    """Refuse what is not one finite 2x2 matrix per row of the layers that are finite."""
    name = "the rule"
    if not isinstance(matrices, Tensor) or not matrices.is_floating_point():
        found = matrices.dtype if isinstance(matrices, Tensor) else type(matrices).__name__
        raise TypeError(f"{name} returned {found}; return a floating point tensor (rows, 2, 2)")
    if tuple(matrices.shape) != (layout.rows, 2, 2):
        raise ValueError(
            f"{name} returned shape {tuple(matrices.shape)}; return one 2x2 matrix for each of the "
            f"{layout.rows} rows, ({layout.rows}, 2, 2): the identity where nothing changes"
        )
    if torch.compiler.is_compiling():
        return  # there are no values yet; rows that are not finite stay as they are
    wrong = ~matrices.isfinite().flatten(1).all(1) & finite
    if wrong.any():
        row = int(wrong.nonzero()[0])
        l, channel = layout.place(row)
        raise ValueError(
            f"{name} returned {matrices[row].tolist()} for row {row} (channel {channel} of layer "
            f"{l}); return finite matrices: guard divisions by 0, e.g. with torch.where"
        )
