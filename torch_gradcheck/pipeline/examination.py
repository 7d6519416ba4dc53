"""What a check found of J and its gradients, kept for another check of the same J."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from torch_gradcheck.differences.noise import Noise
from torch_gradcheck.engines.selection import Refusals
from torch_gradcheck.gradients.analytic import AnalyticGradient
from torch_gradcheck.methods.choice import MethodChoice, Trials
from torch_gradcheck.methods.problem import Problem
from torch_gradcheck.objective.theta import Theta


class Examination(NamedTuple):
    """What an earlier check found of J and its gradients.

    It refers to nothing of the model: what was lent for that check, and the record of J, are not kept alive.

    Attributes:
        loss: J(θ).
        noise: that of J.
        refused: why a faster engine was not used.
        gradients: those on trial, by position in θ.
        choice: the method they were tried by.
        trials: what was found of them.
        names: of the tensors of θ, in its order.
    """

    loss: float
    noise: Noise
    refused: Refusals
    gradients: Mapping[int, AnalyticGradient]
    choice: MethodChoice
    trials: Trials
    names: tuple[str, ...]

    @classmethod
    def of(
        cls, problem: Problem, gradients: Mapping[int, AnalyticGradient], choice: MethodChoice, trials: Trials
    ) -> Examination:
        """The examination of a problem whose gradients have been tried."""
        refused = {parameter: refusal.without_traceback() for parameter, refusal in problem.refused.items()}
        names = tuple(entry.name for entry in problem.theta)
        return cls(problem.objective.loss, problem.noise, refused, gradients, choice, trials, names)

    def among(self, theta: Theta) -> Examination | None:
        """The same of another θ, by its positions; None where that has other tensors."""
        names = {entry.name: position for position, entry in enumerate(theta)}
        if not names.keys() <= set(self.names):
            return None
        at = {old: names[name] for old, name in enumerate(self.names) if name in names}
        return self._replace(
            refused={key if key is None else at[key]: why for key, why in self.refused.items() if key in (None, *at)},
            gradients={at[old]: each for old, each in self.gradients.items() if old in at},
            trials={at[old]: each for old, each in self.trials.items() if old in at},
            names=tuple(names),
        )

    def is_of(self, problem: Problem, gradients: Mapping[int, AnalyticGradient]) -> bool:
        """Whether a later problem has the same J: loss and gradients agree to the bit, or as far as its own runs do."""
        return self.loss == problem.objective.loss and all(
            np.array_equal(self.gradients[position].values, gradient.values)
            or np.all(np.abs(self.gradients[position].values - gradient.values) <= gradient.error_bar)
            for position, gradient in gradients.items()
        )
