"""`RaGrad`: the training object. twins, statistics and correction in two calls, or one."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from .backends import select
from .correct import check_stats, correct_
from .estimators.choice import Choice
from .estimators.effectiveness import Closure, Effectiveness
from .estimators.gate.forward_watch import ForwardWatch
from .pairs.pairing import Pairs, pair_parameters
from .repa import Factors, HistoryKind, Repa, Scope, renamed_factors
from .rows.conflicts import Conflicts
from .rules import Rule
from .rules.decide import reads_reliability
from .rules.registry import RuleName, rule_of

Stream = nn.Module | Sequence[nn.Parameter]

_LOG = logging.getLogger("ragrad_ext")


class RaGrad:
    """Reliability-guided gradient correction for one model.

    In the loop, two calls::

        ragrad = RaGrad(model.rgb, model.ir)
        ...
        ragrad.backward(loss)       # in place of loss.backward(), once per micro-batch
        ragrad.correct_()           # after unscaling, before clipping and optimizer.step()

    or one line for a loop that is left as it is::

        RaGrad(model.rgb, model.ir).attach(optimizer)

    Nothing is stored on the model, and inference does not change. After the first correction the
    logger ``ragrad_ext`` says in one line, at INFO, where effectiveness comes from.

    Args:
        rgb, ir: the twin backbones (modules), or two lists of Parameters, or ``Pairs`` alone, as
            `pair_parameters` returns them for a model that needs rules.
        effectiveness: the estimator of Eq. 1. ``"auto"`` is `Gate`, which finds in the graph of the
            first step what each row allows; ``"paper"`` is Eq. 2 by exact double backward
            (`Hutchinson`), and an operator that has none is an error at the first loss.
        factors, alpha, scope, history, history_dtype: as in `Repa`. By default both factors of R,
            and none for a rule that reads no reliability.
        rule, backend: as in `correct_`.
        reliability: the old name of ``factors``.

    Attributes:
        pairs: what is paired and what was left out; ``pairs.report()`` prints it.
        repa: the statistics; ``repa.reliability`` is the latest R.
        last: the latest `Conflicts`; None before the first correction.
    """

    def __init__(
        self,
        rgb: Stream | Pairs,
        ir: Stream | None = None,
        *,
        effectiveness: Effectiveness | Choice = "auto",
        factors: Factors | None = None,
        alpha: float = 0.95,
        scope: Scope = "model",
        history: HistoryKind = "ema",
        history_dtype: torch.dtype = torch.float32,
        rule: RuleName | Rule = "ragrad",
        backend: str = "auto",
        reliability: Factors | None = None,
    ) -> None:
        self.pairs = _pairs(rgb, ir)
        self.rule, self.backend = rule_of(rule), backend
        select(backend, self.pairs.rgb[0].device)
        default: Factors = "both" if reads_reliability(self.rule) else "none"
        factors = renamed_factors(factors or default, reliability)
        self.repa = Repa(
            self.pairs.rgb,
            self.pairs.ir,
            factors=factors,
            alpha=alpha,
            scope=scope,
            history=history,
            history_dtype=history_dtype,
            effectiveness=effectiveness,
            channel_axes=self.pairs.channel_axes,
        )
        check_stats(self.repa, self.rule)
        self.last: Conflicts | None = None
        self._attached: RemovableHandle | None = None
        self._watch: ForwardWatch | None = None

    def backward(
        self,
        loss: Tensor,
        *,
        closure: Closure | None = None,
        scaler: torch.amp.GradScaler | None = None,
        **kwargs: Any,
    ) -> None:
        """``loss.backward()``, seen by the estimator of effectiveness.

        Args:
            loss: the scalar loss of this micro-batch, not scaled by a GradScaler.
            closure: computes the same loss again, for estimators that move or remove weights
                (`FiniteDifference`, `Removal`, ...); `GaussNewtonBartlett` wants another.
            scaler: if given, ``scaler.scale(loss)`` is what is differentiated.
            kwargs: passed to ``Tensor.backward``.
        """
        self.repa.before_backward(loss, closure)
        (loss if scaler is None else scaler.scale(loss)).backward(**kwargs)
        self.repa.after_backward(closure)

    def correct_(self) -> Conflicts:
        """Observe the gradients in ``.grad`` and correct them in place. Once per optimizer step.

        Raises:
            RuntimeError: this object is attached, so that the optimizer's step does it already.
        """
        if self._attached is not None:
            raise RuntimeError(
                "attached: optimizer.step() corrects by itself, and a second correction would "
                "count this step twice; drop this call, or detach()"
            )
        if self._needs_trace():
            raise RuntimeError(
                f"{type(self.repa.effectiveness).__name__} has seen no loss to trace: call "
                "ragrad.backward(loss) in place of loss.backward(), or let attach(optimizer) do "
                "everything"
            )
        return self._correct_()

    def attach(self, optimizer: Optimizer) -> RaGrad:
        """Correct before every ``optimizer.step()``; the loop needs no other change.

        With a GradScaler the gradients are unscaled by then, and overflow steps are skipped
        entirely. (A ``fused=True`` optimizer wants ``scaler.unscale_(optimizer)`` first.)

        The default `Gate` learns the model's normalisations from the graph of the first forward:
        a process-wide module hook watches for it and goes with the first step.

        Returns:
            self, so that construction and attachment fit one line.
        """
        if self._attached is not None:
            raise RuntimeError("already attached to an optimizer; detach() first")
        theirs = {id(p) for group in optimizer.param_groups for p in group["params"]}
        mine = [*self.pairs.rgb, *self.pairs.ir]
        if not any(id(p) in theirs for p in mine):
            raise ValueError(
                f"this optimizer holds none of the {len(mine)} paired weights; attach to the one "
                "that steps the backbones"
            )
        if self._needs_trace():
            self._watch = ForwardWatch(self.repa.effectiveness.trace)
        self._attached = optimizer.register_step_pre_hook(self._before_step)
        return self

    def detach(self) -> None:
        """Undo ``attach``; statistics stay."""
        if self._watch is not None:
            self._watch.remove()
        if self._attached is not None:
            self._attached.remove()
        self._attached = self._watch = None

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if self._watch is not None:
            self._watch.remove()
            self._watch = None
            if self._needs_trace():
                warnings.warn(
                    "Gate could not trace the model: no module ran between attach() and this step. "
                    "It falls back to -g.theta, which is meaningless before a BatchNorm. Call "
                    "ragrad.backward(loss) in place of loss.backward()",
                    stacklevel=2,
                )
        if getattr(optimizer, "grad_scale", None) is not None:
            raise RuntimeError(
                "a fused optimizer under a GradScaler hands over scaled gradients; call "
                "scaler.unscale_(optimizer) before scaler.step(optimizer)"
            )
        self._correct_()

    def _needs_trace(self) -> bool:
        """Whether the estimator is used, and has not yet seen the graph of a forward."""
        return self.repa.measures_effect and self.repa.effectiveness.needs_trace

    def _correct_(self) -> Conflicts:
        grads_rgb, grads_ir = ([p.grad for p in side] for side in (self.pairs.rgb, self.pairs.ir))
        if not any(g is not None for side in (grads_rgb, grads_ir) for g in side):
            warnings.warn(
                f"none of the {2 * len(grads_rgb)} paired weights has a gradient, so nothing is "
                "corrected: the correction belongs between backward and zero_grad, and RaGrad is "
                "made after whatever replaces the model's parameters",
                stacklevel=3,
            )
        first = self.last is None
        self.last = correct_(grads_rgb, grads_ir, self.repa, rule=self.rule, backend=self.backend)
        if first and self.repa.measures_effect:
            _LOG.info("effectiveness by %s", self.repa.effectiveness.summary())
        return self.last

    def state_dict(self) -> dict[str, Any]:
        """The statistics and the names they belong to; loads with ``weights_only=True``."""
        return {
            "pairs": [list(names) for names in self.pairs.names],
            "repa": self.repa.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state_dict()``, bit for bit.

        Raises:
            ValueError: the state is of another model or other options; nothing was changed.
        """
        mine, theirs = [list(names) for names in self.pairs.names], state.get("pairs")
        if mine != theirs:
            found = "no pairs" if theirs is None else _difference(mine, theirs)
            raise ValueError(
                f"this state belongs to another model: {found}; load it into a RaGrad built "
                "on the same two streams"
            )
        self.repa.load_state_dict(state["repa"])


def _pairs(rgb: Stream | Pairs, ir: Stream | None) -> Pairs:
    if isinstance(rgb, Pairs):
        if ir is not None:
            raise TypeError("RaGrad got Pairs and a second stream; Pairs hold both streams")
        return rgb
    if ir is None:
        raise TypeError(
            "RaGrad got one stream; pass RaGrad(rgb, ir), or RaGrad(pair_parameters(model, ...)) "
            "for a model whose streams interleave"
        )
    return pair_parameters(rgb, ir)


def _difference(mine: list[list[str]], theirs: list[list[str]]) -> str:
    if len(mine) != len(theirs):
        return f"it holds {len(theirs)} pairs, this model has {len(mine)}"
    l = next(i for i, (a, b) in enumerate(zip(mine, theirs, strict=True)) if a != b)
    return f"its pair {l} is {' / '.join(theirs[l])}, here it is {' / '.join(mine[l])}"
