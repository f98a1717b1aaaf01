"""REPA, Eq. 2-5: how reliable each modality is, from its gradients over time."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol, TypeVar, get_args

import torch
from torch import Tensor

from . import reference
from .backends import Backend
from .estimators.choice import Choice, estimator
from .estimators.effectiveness import Closure, Effectiveness
from .rows.bucket import Bucket, Buckets
from .rows.conflicts import Conflicts
from .rows.layout import Layout
from .rows.reliability import Reliability
from .rows.sums import History, RowSums, Sensitivity
from .rows.twins import Twins
from .rules import RaGradRule, Rule
from .rules.decide import decide

Factors = Literal["both", "effectiveness", "sensitivity", "none"]
Scope = Literal["model", "layer"]
HistoryKind = Literal["ema", "cumulative"]
T = TypeVar("T")


class Do(Protocol):
    """Has work done by a backend; see `ragrad_ext.backends.with_backend`."""

    def __call__(self, work: Callable[[Backend], T], /) -> T: ...


class Repa:
    """The statistics that reliability is made of, carried from step to step.

    Passed to `correct_`, one call per optimizer step observes the gradients (Eq. 2-5) and
    corrects them by the reliability just measured.

    Args:
        weights_rgb, weights_ir: L twin weights, in the order of the gradients.
        alpha: decay of Eq. 4; also 1 - w of the EMA history.
        factors: of R: ``"both"``: R = E^ S^ (Eq. 5), or one alone (Table 3). ``"none"``: nothing is
            measured, for rules that read no reliability.
        scope: Eq. 3 pools both modalities over the ``"model"`` or over each ``"layer"``.
        history: mu of Eq. 4 as an ``"ema"`` or as the ``"cumulative"`` mean of all steps.
        history_dtype: of mu, the only buffer as large as the weights: float32 or bfloat16.
        effectiveness: the estimator of Eq. 1. ``"auto"`` is `Gate`, which is first order until
            its ``trace`` has seen a forward; ``"paper"`` is `Hutchinson`.
        channel_axes: the output channel axis of each pair, default 0 (transposed convolutions: 1).
        reliability: the old name of ``factors``; it warns, and goes with the next version.

    Attributes:
        layout: the rows (l, i) of all pairs.
        reliability: the latest `Reliability`; None before the first step.
        effect: the latest E of Eq. 1 as estimated, (2, rows) float64 in units of the loss, rgb
            first; None before the first step and where it is no factor of R.
    """

    def __init__(
        self,
        weights_rgb: Sequence[Tensor],
        weights_ir: Sequence[Tensor],
        *,
        alpha: float = 0.95,
        factors: Factors = "both",
        scope: Scope = "model",
        history: HistoryKind = "ema",
        history_dtype: torch.dtype = torch.float32,
        effectiveness: Effectiveness | Choice = "auto",
        channel_axes: Sequence[int] | None = None,
        reliability: Factors | None = None,
    ) -> None:
        factors = renamed_factors(factors, reliability)
        _check_options(alpha, factors, scope, history, history_dtype)
        self.twins = Twins.of(weights_rgb, weights_ir, channel_axes)
        self.alpha, self.factors, self.scope, self.history = alpha, factors, scope, history
        self.history_dtype = history_dtype
        self.effectiveness = estimator(effectiveness)
        self.effectiveness.bind(self.twins)
        self.reliability: Reliability | None = None
        self.effect: Tensor | None = None
        device = self.twins.device
        self._steps = torch.zeros(2, self.layout.rows, dtype=torch.float64, device=device)
        self._sensitivity = torch.zeros(2, self.layout.rows, dtype=torch.float64, device=device)
        self._mean: tuple[list[Tensor], list[Tensor]] | None = None
        if self.measures_sensitivity:
            self._mean = tuple(  # type: ignore[assignment]
                [torch.zeros_like(w, dtype=history_dtype, requires_grad=False) for w in side]
                for side in self.twins.weights
            )
        self.buckets = Buckets(self.layout, self.twins.channel_axes)

    @property
    def layout(self) -> Layout:
        return self.twins.layout

    @property
    def device(self) -> torch.device:
        return self._sensitivity.device

    @property
    def measures_effect(self) -> bool:
        """Whether E is a factor of R."""
        return self.factors in ("both", "effectiveness")

    @property
    def measures_sensitivity(self) -> bool:
        """Whether S is a factor of R."""
        return self.factors in ("both", "sensitivity")

    @torch.no_grad()
    def step_(self, bucket: Bucket, do: Do, rule: Rule) -> Conflicts:
        """Take in one step's gradients (Eq. 2-5), then correct them by a rule.

        The deviation of Eq. 4 is taken from the history before this step.

        Args:
            do: has one verb done by the backend that was chosen.
        """
        if self.measures_effect:
            self.effectiveness.check_ready()
        self._to(bucket.device)
        weights, history = self._weights_to_read(), self._history()
        sums = do(lambda backend: backend.observe_(bucket, weights, history))
        if self.measures_effect:
            self.effect = self.effectiveness.effect(bucket, sums)
        r: Tensor | None
        if isinstance(rule, RaGradRule):
            r, conflicts = self._rate_and_apply_(bucket, do, sums, rule)
        else:
            r = self._rate_(sums)
            mix, conflicts = decide(sums.gram, r, self.layout, rule, bucket.absent())
            do(lambda backend: backend.apply_(bucket, mix))
        self.reliability = None if r is None else Reliability.flat(r, self.layout)
        return conflicts

    def _rate_and_apply_(
        self, bucket: Bucket, do: Do, sums: RowSums, rule: RaGradRule
    ) -> tuple[Tensor, Conflicts]:
        def work(backend: Backend) -> tuple[Tensor, Conflicts]:
            return backend.rate_and_apply_(
                bucket,
                sums,
                self.effect,
                self._state,
                self._groups,
                rule,
                by_sensitivity=self.measures_sensitivity,
            )

        return do(work)

    def _rate_(self, sums: RowSums) -> Tensor | None:
        if self.factors == "none":
            return None
        return reference.rate_(
            sums, self.effect, self._state, self._groups, by_sensitivity=self.measures_sensitivity
        )

    def before_backward(self, loss: Tensor, closure: Closure | None = None) -> None:
        """Show a micro-batch's loss to the estimator of effectiveness, if it is used at all."""
        if self.measures_effect:
            self.effectiveness.before_backward(loss, closure)

    def after_backward(self, closure: Closure | None = None) -> None:
        """Likewise, once ``backward`` of that micro-batch is done."""
        if self.measures_effect:
            self.effectiveness.after_backward(closure)

    @property
    def _state(self) -> Sensitivity:
        return Sensitivity(self._sensitivity, self._steps, self.alpha)

    @property
    def _groups(self) -> Sequence[int]:
        """How many rows Eq. 3 pools at a time."""
        return (self.layout.rows,) if self.scope == "model" else self.layout.channels

    def _weights_to_read(self) -> tuple[Sequence[Tensor | None], Sequence[Tensor | None]]:
        if not self.measures_effect:
            none = [None] * len(self.layout.channels)
            return none, none
        reads = self.effectiveness.reads_weight
        rgb, ir = (
            [w if reads(m, l) else None for l, w in enumerate(side)]
            for m, side in enumerate(self.twins.weights)
        )
        return rgb, ir

    def _history(self) -> History | None:
        """mu, and w of this step: a row that was never observed becomes its gradient (w = 1)."""
        if self._mean is None:
            return None
        if self.history == "cumulative":
            return History(self._mean, 1 / (self._steps + 1))
        # tensors, not numbers: torch.where would make float32 of two Python floats
        ema = torch.full_like(self._steps, 1 - self.alpha)
        return History(self._mean, torch.where(self._steps > 0, ema, 1.0))

    def _to(self, device: torch.device) -> None:
        """Follow a model that was moved after it was paired."""
        if self.device != device:
            self._steps = self._steps.to(device)
            self._sensitivity = self._sensitivity.to(device)
            for side in self._mean or ():
                side[:] = [mean.to(device) for mean in side]

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed run needs to go on bit for bit; loads with ``weights_only=True``."""
        return {
            "options": self._options(),
            "steps": self._steps.clone(),
            "sensitivity": self._sensitivity.clone(),
            "mean": None if self._mean is None else [[t.clone() for t in s] for s in self._mean],
            "effectiveness": self.effectiveness.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state_dict()``.

        Raises:
            ValueError: the state belongs to other weights or other options; nothing was changed.
        """
        for name, mine in self._options().items():
            theirs = state.get("options", {}).get(name)
            if mine != theirs:
                raise ValueError(
                    f"this Repa has {name}={mine!r}, the saved one had {theirs!r}; build it for "
                    "the same model with the same options, then load"
                )
        self._steps = state["steps"].to(self.device, copy=True)
        self._sensitivity = state["sensitivity"].to(self.device, copy=True)
        for mine_, saved in zip(self._mean or (), state["mean"] or (), strict=True):
            for mean, value in zip(mine_, saved, strict=True):
                mean.copy_(value)
        self.effectiveness.load_state_dict(state["effectiveness"])

    def _options(self) -> dict[str, Any]:
        return {
            "shapes": [list(w.shape) for w in self.twins.weights[0]],
            "channel_axes": list(self.twins.channel_axes),
            "alpha": self.alpha,
            "factors": self.factors,
            "scope": self.scope,
            "history": self.history,
            "history_dtype": str(self.history_dtype),
            "effectiveness": type(self.effectiveness).__name__,
        }


def renamed_factors(factors: Factors, reliability: Factors | None) -> Factors:
    """``factors=``, or what its old name ``reliability=`` gave, with a warning."""
    if reliability is None:
        return factors
    warnings.warn(
        "reliability= is now called factors=; the old name goes with the next version",
        DeprecationWarning,
        stacklevel=3,
    )
    return reliability


def _check_options(
    alpha: float, factors: str, scope: str, history: str, history_dtype: torch.dtype
) -> None:
    if not 0 <= alpha < 1:
        raise ValueError(f"alpha={alpha!r}; the decay of Eq. 4 must be in [0, 1)")
    for name, value, choices in (
        ("factors", factors, get_args(Factors)),
        ("scope", scope, get_args(Scope)),
        ("history", history, get_args(HistoryKind)),
        ("history_dtype", history_dtype, (torch.float32, torch.bfloat16)),
    ):
        if value not in choices:
            raise ValueError(f"{name}={value!r} is unknown; choose one of {choices}")
