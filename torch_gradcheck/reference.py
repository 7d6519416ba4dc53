"""The gradient on trial against its reference, by the method that was asked for."""

from __future__ import annotations

from torch_gradcheck.analytic import AnalyticGradient
from torch_gradcheck.method import Chosen, chosen_method
from torch_gradcheck.numerical import Numerical, Tried
from torch_gradcheck.objective import Objective
from torch_gradcheck.progress import ProgressBar
from torch_gradcheck.projected.trials import Projected
from torch_gradcheck.request import Request
from torch_gradcheck.theta import Theta


def tried_by_method(
    objective: Objective,
    theta: Theta,
    asked: Request,
    numerical: Numerical,
    gradients: dict[int, AnalyticGradient],
    progress: ProgressBar,
) -> tuple[Chosen, dict[int, Tried]]:
    """Which method it was, and every checked parameter tried by it, by position in θ."""
    chosen = chosen_method(asked.method, objective, theta, numerical)
    if chosen.method == "exact":
        return chosen, numerical.trials(gradients, progress)
    return chosen, Projected(objective, theta, asked, numerical, gradients, progress).trials()
