"""`second_order`: differentiating the backward gives the right second derivative, or an error that says it cannot.

With random u, φ = Σ ⟨u, g⟩ is a number that depends on the gradients g that the backward returns, and they depend on
what is on trial and on the gradients v of the outputs. Its gradient by a double backward is judged along a direction
through each of these.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import numpy as np
import torch

from torch_gradcheck.arrays import Floats
from torch_gradcheck.contract.beside import Slopes, judged_beside
from torch_gradcheck.contract.outcome import UNREPEATABLE, Raised, attempted, failed, not_applicable, passed
from torch_gradcheck.contract.problem_trial import ProblemTrial
from torch_gradcheck.contract.slopes import Precision, Slope, Verdict, bears_out, judged
from torch_gradcheck.gradients.accumulation import gradients_of
from torch_gradcheck.gradients.double_backward import kept_intermediates
from torch_gradcheck.objective.function_outputs import inner
from torch_gradcheck.objective.perturbation import RandomDirection
from torch_gradcheck.precision.dtypes import epsilon
from torch_gradcheck.precision.mode import PrecisionMode
from torch_gradcheck.precision.rounding_noise import moved_by_rounding
from torch_gradcheck.reporting.facts import ContractEntry
from torch_gradcheck.reporting.words import listed
from torch_gradcheck.torch_internals.custom_ops import name_of_function

NAME = "second_order"

MOVED = 1e-3
"""How far, relative to their sizes, tensors move to see what a Function keeps of them."""

MISTAKES = (AttributeError, NameError, TypeError, LookupError)
"""Exceptions by which Python says that code is wrong; others say that a backward cannot be differentiated."""


def second_order(trial: ProblemTrial) -> ContractEntry:
    """The double backward, along one direction through each tensor on trial and each gradient of an output."""
    if not trial.is_repeatable:
        return not_applicable(NAME, UNREPEATABLE)
    backward = _Backward.of(trial)
    if not backward.cotangents:
        return not_applicable(NAME, "no output has a gradient")
    slopes = attempted(lambda: _judged(trial, backward))
    if isinstance(slopes, Raised):
        return _raised(slopes)
    wrong = {name: slope for name, slope in slopes.items() if slope.verdict is Verdict.WRONG}
    if wrong:
        return failed(NAME, _wrong(trial, wrong, backward.has_graph()))
    unknown = [name for name, slope in slopes.items() if slope.verdict is Verdict.UNKNOWN]
    if unknown:
        return not_applicable(NAME, f"differences, noisy or not finite, tell nothing of {listed(unknown)}")
    arguments = [slopes[name] for name in trial.all_names]
    is_linear = not any(slope.predicted for slope in arguments)
    return passed(NAME, "the second derivative by what is on trial is 0" if is_linear else "")


def _judged(trial: ProblemTrial, backward: _Backward) -> Slopes:
    """The slopes of all; where some are not right, with casts to a lower precision raised in the backward, too.

    Whether J has to raise any is known of its forward alone, and a gradient that is rounded climbs stairs.
    """
    slopes = judged_beside(trial, backward.slopes, backward.names)
    if all(each.verdict is Verdict.RIGHT for each in slopes.values()) or not backward.casts():
        return slopes
    return judged_beside(trial, replace(backward, raises_precision=True).slopes, backward.names)


def _raised(raised: Raised) -> ContractEntry:
    if isinstance(raised.error, MISTAKES):
        return failed(NAME, f"differentiating the backward raises {raised}")
    return passed(NAME, f"differentiating the backward raises, as it may: {raised}")


def _wrong(trial: ProblemTrial, wrong: Slopes, has_graph: bool) -> str:
    name = max(wrong, key=lambda each: abs(wrong[each].numeric - wrong[each].predicted))
    lost = "" if has_graph else ": the gradients that it returns have no graph"
    follows = ", as it may be where the gradient itself is wrong" if trial.has_mistake else ""
    return (
        f"the gradients that the backward returns{trial.backwards} were differentiated; the derivative by "
        f"{listed(list(wrong))} is wrong{lost}{follows}. Along a random direction through {name} autograd gives "
        f"{wrong[name]}{_kept(trial)}"
    )


def _kept(trial: ProblemTrial) -> str:
    """What Functions keep that autograd takes for a constant, as the end of a sentence; "" for nothing."""
    found = attempted(lambda: _intermediates(trial))
    if isinstance(found, Raised) or not found:
        return ""
    return (
        f". Autograd takes {listed(found)} for a constant there, which the forward computes: save what it is computed "
        "from, or return it as an output"
    )


def _intermediates(trial: ProblemTrial) -> list[str]:
    with torch.enable_grad():
        with trial.regime():
            here = trial.outputs(trial.fresh())
        with RandomDirection(trial.tensors, trial.problem.request.seed).at(MOVED), trial.regime():
            there = trial.outputs(trial.fresh())
    return [f"{each.name} of {name_of_function(each.function)}" for each in kept_intermediates(here, there)]


@dataclass(frozen=True)
class _Backward:
    """φ, a function of what is on trial and of v.

    Attributes:
        trial: the function.
        cotangents: v of each output that has a gradient.
        weights: u of each gradient.
        raises_precision: casts to a lower precision are raised, whether or not J needs that.
    """

    trial: ProblemTrial
    cotangents: Sequence[torch.Tensor]
    weights: Sequence[torch.Tensor]
    raises_precision: bool = False

    @classmethod
    def of(cls, trial: ProblemTrial) -> _Backward:
        """With v as J has it, and u like it."""
        with torch.enable_grad(), trial.held_regime():
            outputs = [y for y in trial.outputs(trial.arguments) if y.requires_grad]
            cotangents = [v.detach().clone() for v in trial.cotangents(outputs)]
        offset = len(cotangents)
        weights = [trial.loss.cotangent(offset + k, tensor) for k, tensor in enumerate(trial.tensors)]
        return cls(trial, cotangents, weights)

    @property
    def names(self) -> list[str]:
        """Of the tensors on trial, and of the gradients of the outputs."""
        run = self.trial.first
        outputs = [name for name, has_graph in zip(run.names, run.have_graphs, strict=True) if has_graph]
        return [*self.trial.all_names, *[f"the gradient of {name}" for name in outputs]]

    def slopes(self, names: Collection[str]) -> Slopes:
        """φ along a direction through each of these, beside what a double backward says of it.

        One direction through all of them comes first; where it bears all out, none is tried alone.
        """
        moving = [*self.trial.tensors, *self.cotangents]
        here, scale = self._by_double_backward()
        positions = {name: position for position, name in enumerate(self.names) if name in names}
        request = self.trial.problem.request
        precision = Precision(epsilon(request.dtype), request.tolerance, scale)
        together = RandomDirection([moving[position] for position in positions.values()], request.seed)
        predicted = [together.slope_through(k, here[position]) for k, position in enumerate(positions.values())]
        if bears_out(self._along(together), predicted, precision):
            return {name: Slope.right(each) for name, each in zip(positions, predicted, strict=True)}
        return {name: self._slope(position, moving[position], here, precision) for name, position in positions.items()}

    def casts(self) -> bool:
        """Whether a cast to a lower precision, in the forward or in the backward, would have to be raised."""
        mode = PrecisionMode(self.trial.problem.request.dtype)
        with torch.enable_grad(), self.trial.held_regime(mode):
            self._gradients_with_graph(self.cotangents)
        return bool(mode.overridden) and not self.trial.problem.objective.raises_precision

    def has_graph(self) -> bool:
        """Whether any gradient that the backward returns has a graph."""
        with torch.enable_grad(), self._regime():
            gradients = self._gradients_with_graph([v.detach().requires_grad_() for v in self.cotangents])
            return any(gradient.requires_grad for gradient in gradients if gradient is not None)

    def _slope(
        self, position: int, tensor: torch.Tensor, here: Sequence[torch.Tensor | None], precision: Precision
    ) -> Slope:
        direction = RandomDirection([tensor], self.trial.problem.request.seed)

        def predicted(step: float) -> float:
            with direction.at(step):
                gradients = self._by_double_backward()[0] if step else here
            return direction.slope([gradients[position]])

        def both() -> Floats:
            return np.array([self._value(), direction.slope([self._by_double_backward()[0][position]])])

        def rounding() -> tuple[float, float]:
            of_value, of_slope = moved_by_rounding(both, self.trial.problem.request.seed)
            return float(of_value), float(of_slope)

        return judged(self._along(direction), predicted, precision, rounding)

    def _regime(self) -> AbstractContextManager[None]:
        return self.trial.held_regime(
            PrecisionMode(self.trial.problem.request.dtype) if self.raises_precision else None
        )

    def _along(self, direction: RandomDirection) -> Callable[[float], float]:
        """φ as a function of the step along a direction; NaN where it raises."""

        def value(step: float) -> float:
            with direction.at(step):
                found = attempted(self._value)
            return float("nan") if isinstance(found, Raised) else found

        return value

    def _value(self) -> float:
        """φ."""
        with torch.enable_grad(), self._regime():
            found = gradients_of([self._loss(self.cotangents)], self.trial.tensors)
            strays = self.trial.problem.objective.strays
        return float("nan") if strays else float(sum(self._terms(found)))

    def _by_double_backward(self) -> tuple[list[torch.Tensor | None], float]:
        """The gradients of φ by what is on trial and by v, and the size of the terms of φ."""
        cotangents = [v.detach().requires_grad_() for v in self.cotangents]
        leaves = [*self.trial.tensors, *cotangents]
        with torch.enable_grad(), self._regime():
            gradients = self._gradients_with_graph(cotangents)
            total = sum(self._terms(gradients))
            pairs = zip(self.weights, gradients, strict=True)
            scale = sum([float((u * g.detach()).abs().sum()) for u, g in pairs if g is not None])
            if not isinstance(total, torch.Tensor) or not total.requires_grad:
                return [None for _ in leaves], scale
            return gradients_of([total], leaves), scale

    def _terms(self, gradients: Sequence[torch.Tensor | None]) -> list[torch.Tensor]:
        return [inner(u, g) for u, g in zip(self.weights, gradients, strict=True) if g is not None]

    def _gradients_with_graph(self, cotangents: Sequence[torch.Tensor]) -> Sequence[torch.Tensor | None]:
        loss = self._loss(cotangents)
        return torch.autograd.grad(loss, self.trial.tensors, create_graph=True, allow_unused=True)

    def _loss(self, cotangents: Sequence[torch.Tensor]) -> torch.Tensor:
        outputs = [y for y in self.trial.outputs(self.trial.arguments) if y.requires_grad]
        return torch.stack([inner(v, y) for v, y in zip(cotangents, outputs, strict=True)]).sum()
