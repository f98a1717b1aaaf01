"""Random directions in the space of weights or gains, and what ``Hv`` says about each row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ...rows.twins import Twins
from ..schedule import mixed

Form = Literal["diagonal", "weighted", "rows"]


class Target(NamedTuple):
    """A tensor that is moved. Row i of pair l, modality m, is index i of its ``axis``."""

    tensor: Tensor
    m: int
    l: int
    axis: int


@dataclass(frozen=True)
class Probe:
    """Random signs z for every target. From ``Hv`` they give an unbiased sample of q per row.

    ``form`` says which v, and what q is in expectation over z:

    - ``"diagonal"``: v = z, ``q = 1/2 sum_j z_j theta_j^2 (Hz)_j``: of ``1/2 sum_j h_j theta_j^2``
      (Eq. 2 as AdaHessian has it).
    - ``"weighted"``: v = z theta, ``q = 1/2 sum_j v_j (Hv)_j``: of the same. Two weights of one row
      add no more to the variance than above (``|2ab| <= a^2 + b^2``).
    - ``"rows"``: v = z_i theta, one sign per row: of ``1/2 theta_i^T H theta_i``, the whole
      second-order term of removing row i, with off-diagonal curvature.
    """

    targets: Sequence[Target]
    form: Form
    signs: Sequence[Tensor]

    @property
    def directions(self) -> Iterator[Tensor]:
        """v, target by target, with their shapes and dtypes."""
        for t, z in zip(self.targets, self.signs, strict=True):
            theta = t.tensor.detach()
            yield z.to(theta.dtype) if self.form == "diagonal" else z * theta

    def quadratic(self, products: Sequence[Tensor | None], twins: Twins) -> Tensor:
        """q of every row from ``Hv``, or from anything linear in it: (2, rows) float64.

        None, for a target that the loss does not depend on, adds 0.
        """
        q = torch.zeros(2, twins.layout.rows, dtype=torch.float64, device=twins.device)
        rows = twins.layout.slices()
        for t, z, hv in zip(self.targets, self.signs, products, strict=True):
            if hv is not None:
                theta = t.tensor.detach()
                # one copy and then in place: a refresh should need little memory
                terms = hv.to(torch.float64, copy=True).mul_(z).mul_(theta)
                if self.form == "diagonal":
                    terms.mul_(theta)
                terms = terms.movedim(t.axis, 0)
                q[t.m, rows[t.l]] += 0.5 * terms.reshape(terms.shape[0], -1).sum(1)
        return q


def draw(targets: Sequence[Target], form: Form, seed: int, index: int) -> Probe:
    """Probe number ``index`` of ``seed``: the same signs whenever it is drawn."""
    generators: dict[torch.device, torch.Generator] = {}
    signs = []
    for t in targets:
        device = t.tensor.device
        if device not in generators:
            generators[device] = torch.Generator(device).manual_seed(mixed(seed, index))
        shape = list(t.tensor.shape)
        if form == "rows":
            shape = [n if axis == t.axis else 1 for axis, n in enumerate(shape)]
        bits = torch.randint(
            0, 2, shape, generator=generators[device], device=device, dtype=torch.int8
        )
        signs.append(2 * bits - 1)
    return Probe(targets, form, signs)


def check_probes(probes: int) -> int:
    """``probes``, or a ValueError."""
    if probes < 1:
        raise ValueError(f"probes={probes}; take at least one")
    return probes
