"""The backward on trial: that of compiled code where J runs any, compiled anew in the precision of the check."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch

from torch_gradcheck.gradients.analytic import AnalyticGradient
from torch_gradcheck.gradients.by_autograd import autograd_gradients, theta_gradients
from torch_gradcheck.gradients.compiled_parts import CompiledPart, MetParts, with_backends
from torch_gradcheck.objective.objective import Objective
from torch_gradcheck.objective.theta import Theta
from torch_gradcheck.precision.dtypes import epsilon, in_precision, name_of
from torch_gradcheck.reporting.words import listed
from torch_gradcheck.torch_internals.compiler import CompiledCall, CompiledCode, compiled_calls, compiler_as_it_was

SAME_VALUE = 0.7
"""The power of machine epsilon, 1e-11 in float64, by which compiled code may sum J in another order."""

LOWER_PRECISION = 1e-5
"""Up to this relative difference, J of compiled code is that of float32: a backend may know nothing else."""

RECIPE = 'to have it judged, run one training step of the compiled model and check what it left: gradients="grad"'


class Backward:
    """One backward of J, eager or through compiled code, with what is to be told of it.

    J is run once eagerly, as it would be anyhow; where it calls what torch.compile was given, once more with these
    parts compiled. Parts that cannot be put on trial stay eager.

    Args:
        objective: J, its model lent.
        theta: the parameters.
        eager: runs the eager backward, and gives its gradients.

    Attributes:
        eager: the gradients of eager autograd, by position in θ.
        gradients: those on trial: `eager` itself where nothing compiled is.
        parts: the parts of J whose compiled backward is on trial; empty where there are none.
        notes: what is on trial and what is not, in sentences.
    """

    def __init__(self, objective: Objective, theta: Theta, eager: Callable[[], Mapping[int, AnalyticGradient]]) -> None:
        self._objective, self._theta = objective, theta
        self._met = MetParts(objective.model, objective.words.culprit)
        self.parts: list[CompiledPart] = []
        self.notes: list[str] = []
        with compiled_calls(self._meet):
            self.eager = eager()
        self.gradients = self.eager
        if self._met:
            self._put_on_trial(list(self._met))

    def again(self, wanted: Sequence[int] | None = None) -> dict[int, AnalyticGradient]:
        """The gradients of the same backward at what the parameters hold now; `wanted` as for `autograd_gradients`."""
        if not self.parts or self._objective.held is not None:  # values are held in eager evaluations only
            return autograd_gradients(self._objective, self._theta, wanted=wanted)
        return self._compiled(self.parts).gradients

    def through(self, part: CompiledPart) -> dict[int, AnalyticGradient] | None:
        """The gradients where this part alone is compiled; None where it cannot run so."""
        try:
            return self._compiled([part]).gradients
        except Exception:  # of the backend: with others compiled around it, this part was not compiled by itself
            return None

    def _meet(self, call: CompiledCall) -> bool:
        self._met.meet(call)
        return False

    def _put_on_trial(self, parts: Sequence[CompiledPart]) -> None:
        """Runs the parts compiled, all together; where that fails, those that can run so alone."""
        run, reason = self._tried(parts)
        if reason and len(parts) > 1:
            reasons = {part: self._tried([part])[1] for part in parts}
            able = [part for part, why in reasons.items() if not why]
            run, together = self._tried(able) if able else (None, "")
            self._tell_unjudged(reasons if not together else {part: reasons[part] or together for part in parts})
            parts, reason = able, together
        elif reason:
            self._tell_unjudged(dict.fromkeys(parts, reason))
        if run is not None and not reason:
            self.parts, self.gradients = list(parts), self._with_error_bars(run.gradients)
            self._tell_on_trial(run)

    def _with_error_bars(self, gradients: Mapping[int, AnalyticGradient]) -> dict[int, AnalyticGradient]:
        """The gradients, as uncertain as those of the eager backward, whose runs may differ."""
        return {at: replace(each, error_bar=self.eager[at].error_bar) for at, each in gradients.items()}

    def _tried(self, parts: Sequence[CompiledPart]) -> tuple[_CompiledRun | None, str]:
        """A run with these parts compiled, and why it says nothing on their backward; "" where it does."""
        try:
            run = self._compiled(parts)
        except Exception as error:  # whatever a backend raises, the eager backward is judged
            return None, f"compiling it in {name_of(self._objective.dtype)} raises {_in_one_line(error)}"
        return run, self._why_another(run)

    def _why_another(self, run: _CompiledRun) -> str:
        """Why the run is one of another function on purpose; "" where it is J, or should be."""
        if not run.compiled:
            return "torch.compile left it as it is: nothing in it was compiled"
        off = abs(run.loss - self._objective.loss)
        if off <= self._rounding:
            return ""
        if not self._objective.random_state.is_empty:
            return f"compiled, it draws other random numbers (J = {run.loss:.10g})"
        if self._objective.raises_precision:
            return f"beside it J casts to a lower precision, which moves J by {off:.0e} and cannot be overridden here"
        if off <= LOWER_PRECISION * self._scale:
            return f"compiled, it gives a J that differs by {off:.0e}: its backend may leave the precision of the check"
        return ""

    @property
    def _scale(self) -> float:
        return max(abs(self._objective.loss), 1e-3 * self._objective.largest_output)

    @property
    def _rounding(self) -> float:
        """How far J of compiled code may lie from J, since it sums in another order."""
        return float(epsilon(self._objective.dtype) ** SAME_VALUE) * self._scale

    def _compiled(self, parts: Sequence[CompiledPart]) -> _CompiledRun:
        objective, keys = self._objective, {part.key for part in parts}
        values: list[float] = []
        raised = partial(in_precision, precision=objective.dtype) if objective.raises_precision else None

        def compute() -> torch.Tensor:
            loss = objective.compute()
            values.append(float(loss.detach()))
            return loss

        with warnings.catch_warnings(), compiler_as_it_was(draws_as_eager=not objective.random_state.is_empty):
            warnings.simplefilter("ignore")
            code, called = CompiledCode(), []

            def is_selected(call: CompiledCall) -> bool:
                called.append(call.code)
                return call.key in keys

            # No mode may see the operations while they are compiled: casts are raised in the graphs.
            with compiled_calls(is_selected, raised), torch.enable_grad(), objective.evaluation_as_it_is():
                gradients = theta_gradients(compute, self._theta, epsilon(objective.dtype))
            return _CompiledRun(gradients, values[-1], code.ran(called))

    def _tell_on_trial(self, run: _CompiledRun) -> None:
        objective = self._objective
        self.notes.insert(
            0,
            f"on trial is the backward of compiled code, compiled anew in {name_of(objective.dtype)}: "
            f"{with_backends(self.parts)}; the differences are those of eager J",
        )
        if not abs(run.loss - objective.loss) <= self._rounding:
            self.notes.insert(
                0,
                f"the compiled forward gives another loss, J = {run.loss:.10g} where eager J is {objective.loss:.10g}: "
                f"the compiler ({listed(list(dict.fromkeys(part.backend for part in self.parts)))}) makes a mistake in "
                "the forward already",
            )

    def _tell_unjudged(self, reasons: dict[CompiledPart, str]) -> None:
        grouped: dict[str, list[CompiledPart]] = {}
        for part, reason in reasons.items():
            if reason:
                grouped.setdefault(reason, []).append(part)
        for reason, parts in grouped.items():
            self.notes.append(
                f"the compiled backward was not put on trial, the eager one was, of {with_backends(parts)}: {reason}; "
                f"{RECIPE}"
            )


@dataclass(frozen=True)
class _CompiledRun:
    """J run once with some parts compiled: the gradients, J, and whether compiled code ran at all."""

    gradients: dict[int, AnalyticGradient]
    loss: float
    compiled: bool


def _in_one_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines[:2])[:200]  # the compiler's first line names the backend, the second what it raised
    return f"{type(error).__name__}{f' ({text})' if text else ''}"
