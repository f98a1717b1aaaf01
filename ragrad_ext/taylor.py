"""Eq. 2: effectiveness by a second-order Taylor expansion, by where its Hessian comes from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from .backends.contract import RowSums
from .bucket import Bucket
from .effectiveness import Closure, Effectiveness
from .graph import consumers
from .replay import undisturbed
from .twins import Twins


class Taylor2(Effectiveness):
    """Eq. 2: ``E = -sum_j g_j theta_j + q`` with ``q = 1/2 sum_j h_j theta_j^2``, h = diag(H).

    Only q is kept, (2, rows). It is refreshed every ``every`` steps, summed over the
    micro-batches of that step as the gradient is, and held in between.

    Args:
        every: steps between refreshes; the first step is one.
        average: beta of ``q <- beta q + (1 - beta) q_new``; the first q is taken whole.
        seed: of the probes, which never touch torch's own random state.

    Attributes:
        dropped: () int64, how many row values were not finite, or absent, and left q as it was.
    """

    def __init__(self, *, every: int = 10, average: float = 0.0, seed: int = 0) -> None:
        if every < 1:
            raise ValueError(f"every={every}; q is refreshed every 1, 2, ... steps")
        if not 0 <= average < 1:
            raise ValueError(f"average={average}; the share of the old q lies in [0, 1)")
        self.every, self.average, self.seed = every, average, seed

    def bind(self, twins: Twins) -> None:
        super().bind(twins)
        self.step = 0
        self.probes_drawn = 0
        self.q = torch.zeros(2, twins.layout.rows, dtype=torch.float64, device=twins.device)
        self.known = torch.zeros_like(self.q, dtype=torch.bool)
        self.dropped = torch.zeros((), dtype=torch.int64, device=twins.device)
        self._pending: Tensor | None = None

    @property
    def due(self) -> bool:
        """Whether this step refreshes q."""
        return self.step % self.every == 0

    def check_ready(self) -> None:
        if self.due and self._pending is None:
            name = type(self).__name__
            raise RuntimeError(
                f"{name} must see the loss of this step, and did not: call ragrad.backward(loss) "
                "in place of loss.backward(). Without the loss, Gate, FirstOrder and Fisher remain"
            )

    def scores(self, bucket: Bucket, sums: RowSums) -> Tensor:
        if self._pending is not None:
            self._take(self._pending.to(sums.dot.device))
            self._pending = None
        self.step += 1
        return -sums.dot + self.q

    def _add(self, q: Tensor) -> None:
        self._pending = q if self._pending is None else self._pending + q

    def _take(self, new: Tensor) -> None:
        finite = new.isfinite()
        self.q, self.known = self.q.to(new.device), self.known.to(new.device)
        averaged = self.average * self.q + (1 - self.average) * new
        self.q = torch.where(finite, torch.where(self.known, averaged, new), self.q)
        self.known = self.known | finite
        self.dropped = self.dropped.to(new.device) + (~finite).sum()

    def _probes(self, n: int) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
        """n Rademacher vectors over all weights, reproducible from (seed, probes drawn)."""
        for _ in range(n):
            generators: dict[torch.device, torch.Generator] = {}
            sides: tuple[list[Tensor], list[Tensor]] = ([], [])
            for side, weights in zip(sides, self.twins.weights, strict=True):
                for w in weights:
                    if w.device not in generators:
                        generators[w.device] = torch.Generator(w.device)
                        generators[w.device].manual_seed((self.seed << 32) + self.probes_drawn)
                    bits = torch.randint(
                        0, 2, w.shape, generator=generators[w.device], device=w.device
                    )
                    side.append((2 * bits - 1).to(w.dtype))
            self.probes_drawn += 1
            yield sides

    def _quadratic(self, diagonal: tuple[list[Tensor | None], list[Tensor | None]]) -> Tensor:
        """``1/2 sum_j h_j theta_j^2`` per row, from h shaped like the weights."""
        products = [
            [
                None if h is None else h.double() * w.detach().double().square()
                for h, w in zip(side, weights, strict=True)
            ]
            for side, weights in zip(diagonal, self.twins.weights, strict=True)
        ]
        return 0.5 * self.twins.row_sums(products)

    def state_dict(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "probes_drawn": self.probes_drawn,
            "q": self.q.clone(),
            "known": self.known.clone(),
            "dropped": self.dropped.clone(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.step, self.probes_drawn = state["step"], state["probes_drawn"]
        device = self.twins.device
        self.q, self.known, self.dropped = (
            state[k].to(device, copy=True) for k in ("q", "known", "dropped")
        )
        self._pending = None


class Hutchinson(Taylor2):
    """Eq. 2 as the paper has it: ``h = E_z[z * Hz]`` by exact double backward, z Rademacher.

    Needs ``ragrad.backward(loss)`` and a double backward of every operator. A refresh costs
    about three extra steps and the memory of a second graph.

    Args:
        probes: products per refresh.
        every, average, seed: as in `Taylor2`.
    """

    def __init__(
        self, probes: int = 1, *, every: int = 10, average: float = 0.0, seed: int = 0
    ) -> None:
        super().__init__(every=every, average=average, seed=seed)
        self.probes = _check_probes(probes)

    def before_backward(self, loss: Tensor, closure: Closure | None = None) -> None:
        if not self.due:
            return
        params = [*self.twins.weights[0], *self.twins.weights[1]]
        try:
            with torch.enable_grad():
                # autograd.grad, not backward: .grad and the hooks of the step stay untouched
                grads = torch.autograd.grad(loss, params, create_graph=True, allow_unused=True)
            _refuse_missing_second_derivatives(grads)
            for z_rgb, z_ir in self._probes(self.probes):
                hz = _product(grads, params, [*z_rgb, *z_ir])
                zhz = [
                    None if h is None else z * h for z, h in zip([*z_rgb, *z_ir], hz, strict=True)
                ]
                n = len(z_rgb)
                self._add(self._quadratic((zhz[:n], zhz[n:])) / self.probes)
        except torch.OutOfMemoryError:
            self._pending = None
            raise
        except RuntimeError as error:
            self._pending = None
            raise RuntimeError(
                "Hutchinson needs the second derivative of every operator, and this loss has none: "
                f"{error}. FiniteDifference, with a closure, needs first derivatives only; "
                "Gate, FirstOrder and Fisher need nothing"
            ) from error


def _refuse_missing_second_derivatives(grads: tuple[Tensor | None, ...]) -> None:
    """Behind a ``once_differentiable`` function torch gives no error here, and no derivative."""
    graph = consumers(g for g in grads if g is not None)
    if any(node.name().endswith("Error") for node in graph):
        raise RuntimeError("an operator is marked @once_differentiable")


def _product(
    grads: tuple[Tensor | None, ...], params: list[Tensor], z: list[Tensor]
) -> tuple[Tensor | None, ...]:
    """``Hz`` from gradients that carry a graph; None where the loss does not depend on a weight."""
    curved = [(g, v) for g, v in zip(grads, z, strict=True) if g is not None and g.requires_grad]
    if not curved:
        return (None,) * len(params)
    outputs, vectors = zip(*curved, strict=True)
    return torch.autograd.grad(outputs, params, vectors, retain_graph=True, allow_unused=True)


class FiniteDifference(Taylor2):
    """Eq. 2 through any operator: ``Hz = (g(theta + s z) - g(theta - s z)) / 2s``, z Rademacher.

    Needs ``ragrad.backward(loss, closure=...)``, where the closure runs forward and returns the
    same loss anew. A refresh costs two extra forward-backward passes per probe and a copy of the
    weights. Weights, BatchNorm statistics and random state come back bit for bit.

    Args:
        probes: products per refresh.
        step: s as a share of the root mean square of all paired weights. Smaller steps come closer
            to the derivative of smooth networks, but where ReLUs switch they mostly measure noise.
        every, average, seed: as in `Taylor2`.
    """

    def __init__(
        self,
        probes: int = 1,
        *,
        step: float = 0.1,
        every: int = 10,
        average: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__(every=every, average=average, seed=seed)
        self.probes = _check_probes(probes)
        if not step > 0:
            raise ValueError(f"step={step}; a difference needs a positive step")
        self.step_size = step

    def before_backward(self, loss: Tensor, closure: Closure | None = None) -> None:
        if not self.due:
            return
        if closure is None:
            raise RuntimeError(
                "FiniteDifference computes the loss anew at moved weights: call "
                "ragrad.backward(loss, closure=lambda: criterion(model(x), y)). Without a closure "
                "the estimators that remain are Gate, FirstOrder, Fisher and Hutchinson"
            )
        for z in self._probes(self.probes):
            self._add(self._quadratic(self._central(closure, z)) / self.probes)

    def _central(
        self, closure: Closure, z: tuple[list[Tensor], list[Tensor]]
    ) -> tuple[list[Tensor | None], list[Tensor | None]]:
        """``z * Hz`` for both sides."""
        params = [*self.twins.weights[0], *self.twins.weights[1]]
        vectors = [*z[0], *z[1]]
        total = torch.stack([w.detach().double().square().sum() for w in params]).sum()
        rms = (total / sum(w.numel() for w in params)).sqrt().float()
        step = self.step_size * rms
        saved = [w.detach().clone() for w in params]
        sides = []
        try:
            for sign in (1, -1):
                for w, v, old in zip(params, vectors, saved, strict=True):
                    # .data: the step's own graph holds these weights and must not see them move
                    w.data.copy_(old + sign * step * v)
                with undisturbed(self.twins.device), torch.enable_grad():
                    sides.append(torch.autograd.grad(closure(), params, allow_unused=True))
        finally:
            for w, old in zip(params, saved, strict=True):
                w.data.copy_(old)
        zhz = [
            None if up is None or down is None else v * (up.double() - down.double()) / (2 * step)
            for up, down, v in zip(*sides, vectors, strict=True)
        ]
        return zhz[: len(z[0])], zhz[len(z[0]) :]


class Fisher(Taylor2):
    """Eq. 2 with the squared batch gradient for the Hessian diagonal: no extra backward.

    Args:
        every, average: as in `Taylor2`.
    """

    def __init__(self, *, every: int = 1, average: float = 0.0) -> None:
        super().__init__(every=every, average=average)

    def check_ready(self) -> None:
        """The gradient of the step is all it needs."""

    def scores(self, bucket: Bucket, sums: RowSums) -> Tensor:
        if self.due:
            q = torch.full_like(sums.dot, torch.nan)  # a pair without gradients keeps its q
            for l, rows in enumerate(bucket.layout.slices()):
                for m, g in enumerate(bucket.twins(l) or ()):
                    product = (g.double() * self.twins.first(m, l).double()).square()
                    q[m, rows] = 0.5 * product.reshape(g.shape[0], -1).sum(1)
            self._add(q)
        return super().scores(bucket, sums)


def _check_probes(probes: int) -> int:
    if probes < 1:
        raise ValueError(f"probes={probes}; take at least one")
    return probes
