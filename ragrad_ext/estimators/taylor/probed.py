"""What every second-order estimator by random probes shares, wherever its products come from."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Literal, get_args

import torch
from torch import Tensor
from torch import distributed as dist

from ...rows.bucket import Bucket
from ..effectiveness import Closure
from ..processes import several
from ..refresh import Refreshed, check_probes, ran_out_of_memory
from .probes import Form, Probe, Target, draw
from .products import DoubleBackward, gradients_at

Product = Literal["double", "central", "one-sided"]


class Probed(Refreshed):
    """q by the mean over random probes of ``1/2 v^T H v`` in the parts that belong to each row.

    Args:
        probes: products per refresh (and micro-batch). The error falls as 1/sqrt(probes).
        form: what is estimated, as in `Probe`.
        product: where ``Hv`` comes from:

            - ``"double"``: exact double backward. About two extra steps for a refresh with one
              probe, one and a half for each further; the memory of a second graph. Needs the
              second derivative of every operator.
            - ``"central"``: ``(g(theta + s v) - g(theta - s v)) / 2s``. Two extra steps a probe and
              a copy of what is moved. Needs a closure.
            - ``"one-sided"``: ``(g(theta + s v) - g(theta)) / s`` with the step's own gradient for
              g(theta): one extra step a probe, but an error in s, not s^2. Needs a closure of the
              very loss of this step, all of whose gradient is in ``.grad`` (of this process alone)
              when the correction comes. A closure that draws at random (dropout, sampled regions)
              differs from the step; central differences are then taken from there on, and a
              warning says so. So they are, silently, where several processes train.
        step: s. What is moved by s v has about s times the size of the weights: v is z times
            their root mean square, or already has their scale. None: `default_step`.
        every, average, spread, seed, group: as in `Refreshed`.
    """

    def __init__(
        self,
        probes: int,
        *,
        form: Form,
        product: Product,
        step: float | None = None,
        every: int = 10,
        average: float = 0.0,
        spread: int = 1,
        seed: int = 0,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        super().__init__(every=every, average=average, spread=spread, seed=seed, group=group)
        for name, value, choices in (
            ("form", form, get_args(Form)),
            ("product", product, get_args(Product)),
        ):
            if value not in choices:
                raise ValueError(f"{name}={value!r} is unknown; choose one of {choices}")
        if step is not None and not step > 0:
            raise ValueError(f"step={step}; a difference needs a positive step")
        self.probes = check_probes(probes)
        self.form, self.product, self.move = form, product, step

    def targets(self) -> list[Target]:
        """What is moved on this step: the weights of ``layers``, both sides."""
        return [
            Target(self.twins.weights[m][l], m, l, self.twins.channel_axes[l])
            for m in (0, 1)
            for l in self.layers
        ]

    def from_graph(self, loss: Tensor, closure: Closure | None) -> Tensor | None:
        if self.product == "double":
            return self._twice_differentiated(loss, self.targets())
        self.needed(closure)
        return None

    def from_closure(self, closure: Closure) -> Tensor | None:
        if self.product == "double":
            return None
        targets = self.targets()
        if self.product == "one-sided" and several():
            self.product = "central"
        started = self.product
        total = torch.zeros_like(self.q)
        for probe in self._probes(targets):
            total += self._difference(probe, closure)
        if self.product != started and self._pending is not None:
            total += torch.nan  # one half of earlier micro-batches is there: the refresh is lost
        return total / self.probes

    def complete(self, measured: Tensor, bucket: Bucket) -> Tensor:
        if self.product != "one-sided" or not self.layers:
            return measured
        # The other side of the difference, with the very probes of this step's closure.
        targets = self.targets()
        own = [self.step_gradient(t, bucket) for t in targets]
        absent = torch.zeros_like(self.q, dtype=torch.bool)
        for t, g in zip(targets, own, strict=True):
            if g is None:
                absent[t.m, self.twins.layout.slices()[t.l]] = True
        for probe in self._probes(targets):
            side = probe.quadratic(own, self.twins) / self._size(probe)
            measured = measured - side / self.probes
        self.draws += self.probes
        return torch.where(absent & (measured != 0), torch.nan, measured)

    def step_gradient(self, target: Target, bucket: Bucket) -> Tensor | None:
        """The gradient of this step in a target, as it will be stepped with."""
        return bucket.grads[target.m][target.l]

    def _probes(self, targets: list[Target]) -> Iterator[Probe]:
        first = self.draws
        for index in range(first, first + self.probes):
            yield draw(targets, self.form, self.own_seed, index)
        # A one-sided step draws the same again for its own gradient, and only then moves on.
        if self.product != "one-sided":
            self.draws = first + self.probes

    def _twice_differentiated(self, loss: Tensor, targets: list[Target]) -> Tensor:
        total = torch.zeros_like(self.q)
        try:
            product = DoubleBackward(loss, [t.tensor for t in targets])
            for probe in self._probes(targets):
                total += probe.quadratic(product(probe.directions), self.twins)
        except RuntimeError as error:
            if ran_out_of_memory(error):
                raise
            raise RuntimeError(
                f"{type(self).__name__} needs the second derivative of every operator, and this "
                f"loss has none: {error}. FiniteDifference, with a closure, needs first "
                "derivatives only; Gate, FirstOrder and Fisher need nothing"
            ) from error
        return total / self.probes

    def _difference(self, probe: Probe, closure: Closure) -> Tensor:
        """q of one probe; of a one-sided difference the moved side alone."""
        tensors = [t.tensor for t in probe.targets]
        device = self.twins.device
        size = self._size(probe)
        found, random = gradients_at(closure, tensors, probe.directions, size, device)
        up = probe.quadratic(found, self.twins)
        if self.product == "one-sided":
            if not random:
                return up / size
            self._turn_central()
        del found  # before the other side needs its memory
        found, _ = gradients_at(closure, tensors, probe.directions, -size, device)
        return (up - probe.quadratic(found, self.twins)) / (2 * size)

    def _size(self, probe: Probe) -> float:
        """How far along v is moved."""
        tensors = [t.tensor for t in probe.targets]
        s = default_step(self.product, tensors) if self.move is None else self.move
        if probe.form != "diagonal":
            return s  # v has the scale of the weights itself
        total = torch.stack([w.detach().double().square().sum() for w in tensors]).sum()
        return s * float((total / sum(w.numel() for w in tensors)).sqrt())

    def _turn_central(self) -> None:
        self.product = "central"
        warnings.warn(
            f"{type(self).__name__}: the closure draws random numbers (dropout, sampled regions), "
            "so its gradient and the step's own differ by more than the weights. Central "
            "differences are taken from now on, two extra steps a probe in place of one",
            stacklevel=2,
        )


def default_step(product: Product, tensors: list[Tensor]) -> float:
    """s where none is given: a tenth, or what the coarsest dtype among the tensors demands.

    A smooth loss would want the cube root of the dtype's precision (its square root, one-sided),
    where rounding and the next derivative are equally wrong: 0.005 (0.0003) in float32. But a
    network of ReLUs has its curvature in kinks, and a step that passes few of them measures mostly
    noise.
    """
    precision = max(torch.finfo(t.dtype).eps for t in tensors)
    return float(max(0.1, precision ** (1 / 3 if product == "central" else 1 / 2)))
