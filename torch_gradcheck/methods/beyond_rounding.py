"""What is off by no more than rounding can do is not wrong: of a slope, and of a J that stands still.

In a check of second order the first-order gradient is differenced. Where a function is saturated, all digits of it may
have cancelled: the slope of tanh is computed as 1 − y², and where y is almost 1 that is nothing but the rounding of y.
It stands still between neighbouring numbers, so that no values of J show it. Runs with rounding as noise do. A J of
first order shows its noise as a rule, but for one that has cancelled or underflowed to nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property

import numpy as np

from torch_gradcheck.arrays import Flags, Floats
from torch_gradcheck.gradients.analytic import AnalyticGradient
from torch_gradcheck.gradients.by_autograd import autograd_gradients
from torch_gradcheck.methods.coordinates import Coordinates
from torch_gradcheck.methods.problem import Problem
from torch_gradcheck.precision.rounding_noise import moved_by_rounding
from torch_gradcheck.reporting.progress import ProgressBar
from torch_gradcheck.verdicts.entry_check import CONTRADICTION, Outcome
from torch_gradcheck.verdicts.judge import judge_gradient
from torch_gradcheck.verdicts.trial import ParameterTrial

SPREADS = 30.0
"""A few runs with rounding as noise show how far it moves a gradient up to such a factor."""


def beyond_rounding(
    problem: Problem, gradients: Mapping[int, AnalyticGradient], trials: Mapping[int, ParameterTrial]
) -> dict[int, ParameterTrial]:
    """The trials, those with wrong entries that rounding may explain judged anew by its noise.

    Args:
        problem: J, θ and the options.
        gradients: the gradients on trial, by position in θ.
        trials: of these, coordinate by coordinate.
    """
    rounded = _Rounded(problem, gradients, problem.progress)
    return {position: rounded.judged(position, trial) for position, trial in trials.items()}


class _Rounded:
    """Judges gradients by the noise that rounding makes.

    Args:
        problem: J, θ and the options.
        gradients: the gradients on trial, by position in θ.
        progress: told of every evaluation.
    """

    def __init__(self, problem: Problem, gradients: Mapping[int, AnalyticGradient], progress: ProgressBar) -> None:
        self._problem, self._gradients, self._progress = problem, gradients, progress

    def judged(self, position: int, trial: ParameterTrial) -> ParameterTrial:
        """The trial of one parameter; the very one where nothing is wrong, or is off by more than rounding."""
        wrong = trial.results.outcome == Outcome.MISMATCH
        if trial.proof is not None or trial.jointly or not wrong.any():
            return trial
        if (self._problem.slope is None and not _stands_still(trial, wrong)) or self._is_beyond(position, trial, wrong):
            return trial
        bars = trial.at(self._bars(position))
        check = Coordinates(self._problem, self._progress).entry_check(
            position, np.asarray(trial.coordinates), self._gradients[position]
        )
        noise = check.noise._replace(sigma=max(check.noise.sigma, self._of_j))
        results = judge_gradient(replace(check, noise=noise, analytic_error_bar=bars), None)
        results.error_bar[:] = np.maximum(results.error_bar, bars)
        return replace(trial, results=results)

    def _is_beyond(self, position: int, trial: ParameterTrial, wrong: Flags) -> bool:
        """Whether an entry is off by more than rounding by far; by steps that suit it, error bars are smaller."""
        off = np.abs(trial.analytic - trial.results.numeric)
        sigma = self._problem.noise_along([position]).sigma_at_zero
        if self._of_j and not sigma:
            return False
        louder = max(1.0, self._of_j / sigma) if sigma else 1.0
        allowed = trial.at(self._bars(position)) + CONTRADICTION * louder * trial.results.error_bar
        return bool(np.any((~np.isfinite(off) | (off > allowed)) & wrong))

    @property
    def _of_j(self) -> float:
        return float(self._moved[0])

    def _bars(self, position: int) -> Floats:
        """How far rounding may move each entry of a gradient."""
        before = sum([len(self._gradients[p].values) for p in self._problem.theta.checked if p < position])
        return SPREADS * self._moved[1 + before :][: len(self._gradients[position].values)]

    @cached_property
    def _moved(self) -> Floats:
        """How far rounding moves J, and then every entry of all gradients."""
        objective, theta = self._problem.objective, self._problem.theta

        def both() -> Floats:
            value, gradients = objective.value(), autograd_gradients(objective, theta, at_theta=True)
            return np.concatenate([[value], *[gradients[position].values for position in theta.checked]])

        return moved_by_rounding(both, self._problem.request.seed)


def _stands_still(trial: ParameterTrial, wrong: Flags) -> bool:
    """Whether J does not move at all along the wrong entries."""
    return not np.any(trial.results.numeric[wrong])
