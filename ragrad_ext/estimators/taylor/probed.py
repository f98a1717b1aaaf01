"""The part that all second-order estimators by random probes share."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ...rows.bucket import Bucket
from ...rows.twins import Twins
from ..effectiveness import Closure
from ..processes import several
from ..refresh import Refreshed, ran_out_of_memory
from .probes import Form, Probe, Target, check_probes, draw
from .products import DoubleBackward, gradients_at

Product = Literal["double", "central", "one-sided"]


class Probed(Refreshed):
    """q as a mean over random probes v of ``1/2 v^T H v``, split into the terms of each row.

    Args:
        probes: products per refresh (and micro-batch). The error falls as 1/sqrt(probes).
        form: what is estimated, as in `Probe`.
        product: where ``Hv`` comes from:

            - ``"double"``: exact double backward. A refresh takes about two extra steps with one
              probe, one and a half for each further probe, and the memory of a second graph. Needs
              the second derivative of every operator.
            - ``"central"``: ``(g(theta + s v) - g(theta - s v)) / 2s``. Two extra steps per probe,
              and a copy of what is moved. Needs a closure.
            - ``"one-sided"``: ``(g(theta + s v) - g(theta)) / s`` with the step's own gradient for
              g(theta): one extra step per probe, but an error in s, not s^2. Needs a closure of
              exactly this step's loss, whose whole gradient (of this process alone) is in ``.grad``
              at the correction. Central differences are taken instead where several processes
              train, and, with a warning, once the closure is seen to draw random numbers (dropout,
              sampled regions), because its gradient then differs from the step's own.
        step: s. v is z times the root mean square of what is moved, or has the scale of the weights
            already, so s is a share of the weights. None: `default_step`.
        schedule: fields of `Schedule`.

    Attributes:
        closure_draws: whether a closure was seen to draw random numbers. It is saved with the
            state, so that a resumed run goes on in the same way.
    """

    def __init__(
        self,
        probes: int,
        *,
        form: Form,
        product: Product,
        step: float | None = None,
        **schedule: Any,
    ) -> None:
        super().__init__(**schedule)
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

    def bind(self, twins: Twins) -> None:
        super().bind(twins)
        self.closure_draws = False

    def targets(self) -> list[Target]:
        """What is moved on this step: the weights of ``layers``, both sides."""
        return [
            Target(self.twins.weights[m][l], m, l, self.twins.channel_axes[l])
            for m in (0, 1)
            for l in self.layers
        ]

    @property
    def one_sided(self) -> bool:
        """Whether differences are one-sided now."""
        return self.product == "one-sided" and not self.closure_draws and not several()

    def from_graph(self, loss: Tensor, closure: Closure | None) -> Tensor | None:
        if self.product == "double":
            return self._twice_differentiated(loss, self.targets())
        self.needed(closure)
        return None

    def from_closure(self, closure: Closure) -> Tensor | None:
        if self.product == "double":
            return None
        total = torch.zeros_like(self.held)
        earlier = self._sum is not None  # whether this step measured anything before
        for probe in self._probes(self.targets()):
            one_sided = self.one_sided
            total += self._difference(probe, closure)
            if earlier and one_sided != self.one_sided:
                total += torch.nan  # the earlier differences lack their other side: drop them all
            earlier = True
        return total / self.probes

    def complete(self, measured: Tensor, bucket: Bucket) -> Tensor:
        if not self.one_sided or not self.layers:
            return measured
        # The other side of the difference, with the same probes as in this step's closure.
        targets = self.targets()
        own = [self.step_gradient(t, bucket) for t in targets]
        absent = torch.zeros_like(self.held, dtype=torch.bool)
        for t, g in zip(targets, own, strict=True):
            if g is None:
                absent[t.m, self.twins.layout.slices()[t.l]] = True
        for probe in self._probes(targets):
            side = probe.quadratic(own, self.twins) / self._size(probe)
            measured = measured - side / self.probes
        self.draws += self.probes
        return torch.where(absent & (measured != 0), torch.nan, measured)

    def step_gradient(self, target: Target, bucket: Bucket) -> Tensor | None:
        """The gradient of this step in a target."""
        return bucket.grads[target.m][target.l]

    def _probes(self, targets: list[Target]) -> Iterator[Probe]:
        first = self.draws
        for index in range(first, first + self.probes):
            yield draw(targets, self.form, self.schedule.own_seed, index)
        # A one-sided difference draws the same probes again for its other side, in `complete`.
        if not self.one_sided:
            self.draws = first + self.probes

    def _twice_differentiated(self, loss: Tensor, targets: list[Target]) -> Tensor:
        total = torch.zeros_like(self.held)
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
                "derivatives only; Gate and FirstOrder need nothing"
            ) from error
        return total / self.probes

    def _difference(self, probe: Probe, closure: Closure) -> Tensor:
        """q of one probe. Of a one-sided difference, the moved side alone."""
        tensors = [t.tensor for t in probe.targets]
        device = self.twins.device
        size = self._size(probe)
        found, draws = gradients_at(closure, tensors, probe.directions, size, device)
        if self.one_sided and draws:
            warnings.warn(
                f"{type(self).__name__}: the closure draws random numbers (dropout, sampled "
                "regions), so its gradient differs from the step's own by more than the weights. "
                "Central differences are taken from now on: two extra steps per probe, not one",
                stacklevel=2,
            )
            self.closure_draws = True
            return self._difference(probe, closure)  # with the step of a central difference
        up = probe.quadratic(found, self.twins)
        if self.one_sided:
            return up / size
        del found  # before the other side needs its memory
        found, _ = gradients_at(closure, tensors, probe.directions, -size, device)
        return (up - probe.quadratic(found, self.twins)) / (2 * size)

    def _size(self, probe: Probe) -> float:
        """How far along v the tensors are moved."""
        tensors = [t.tensor for t in probe.targets]
        s = default_step(tensors, one_sided=self.one_sided) if self.move is None else self.move
        if probe.form != "diagonal":
            return s  # v already has the scale of the weights
        total = torch.stack([w.detach().double().square().sum() for w in tensors]).sum()
        return s * float((total / sum(w.numel() for w in tensors)).sqrt())

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "closure_draws": self.closure_draws}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.closure_draws = state["closure_draws"]


def default_step(tensors: list[Tensor], *, one_sided: bool) -> float:
    """s where none is given: a tenth, or more if the coarsest dtype among the tensors needs more.

    Rounding and the next derivative are equally wrong at the cube root of the dtype's precision
    (its square root, one-sided), which is 0.005 (0.0003) in float32. That is right for a smooth
    loss. A network of ReLUs has its curvature in kinks, and a step that passes few of them measures
    mostly noise, so a tenth is the least.
    """
    precision = max(torch.finfo(t.dtype).eps for t in tensors)
    return float(max(0.1, precision ** (1 / 2 if one_sided else 1 / 3)))
