"""Before anything is timed: do all contestants compute the same?"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ragrad_ext import Conflicts
from tests.lib import tolerances

from .timing import Work
from .twins import Twins


def check(works: Mapping[str, Work], reference: Work, twins: Twins) -> None:
    """All give the rows that the reference gives, and write no others; twins are then restored.

    Raises:
        RuntimeError: naming who does not, or that the reference finds other conflicts than the
            twins were made with.
    """
    twins.restore_()
    truth = reference()
    assert isinstance(truth, Conflicts)
    if not torch.equal(truth.mask, twins.mask):
        raise RuntimeError(f"{truth.count()} rows conflict; {int(twins.mask.sum())} were made to")
    expected = twins.weak_rows()
    for name, work in works.items():
        twins.restore_()
        found = work()
        if isinstance(found, Conflicts) and not torch.equal(found.mask, truth.mask):
            raise RuntimeError(f"{name} finds other conflicts than the reference")
        error = largest_error(twins.weak_rows(), expected)
        if not error <= tolerances.RESULT[twins.rgb[0].dtype]:  # nan fails
            raise RuntimeError(f"{name} differs from the reference by {error:.1e} of a row's norm")
        twins.restore_()
        if not twins.intact():
            raise RuntimeError(f"{name} wrote to rows that do not conflict")


def largest_error(
    found: tuple[list[Tensor], list[Tensor]], expected: tuple[list[Tensor], list[Tensor]]
) -> float:
    """The largest error of a row over the row's norm; layers of (rows, ...), by modality."""
    errors = [0.0]
    for x, y in zip([*found[0], *found[1]], [*expected[0], *expected[1]], strict=True):
        if y.numel():
            x, y = x.flatten(1).double(), y.flatten(1).double()
            errors.append(float(((x - y).norm(dim=1) / y.norm(dim=1)).max()))
    return float(torch.tensor(errors).max())  # unlike max(), keeps a nan
