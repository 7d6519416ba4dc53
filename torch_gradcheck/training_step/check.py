"""The check of what a training step left in `.grad`: the same pipeline, in the step's own mode, then `.grad` judged."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from torch_gradcheck.borrowing.loan import Loan
from torch_gradcheck.gradients.analytic import AnalyticGradient
from torch_gradcheck.gradients.by_autograd import autograd_gradients
from torch_gradcheck.methods.choice import MethodChoice, run_method
from torch_gradcheck.methods.problem import Numerical
from torch_gradcheck.methods.summary import notes_of, reported
from torch_gradcheck.objective.loss import Computation
from torch_gradcheck.objective.preflight import check_unchanged, preflighted
from torch_gradcheck.objective.theta import theta_of
from torch_gradcheck.reporting.progress import progress_bar
from torch_gradcheck.reporting.report import Report
from torch_gradcheck.request import Request
from torch_gradcheck.training_step.grad_check import GradCheck
from torch_gradcheck.training_step.step import TrainingStep
from torch_gradcheck.verdicts.rows import over_theta
from torch_gradcheck.verdicts.trial import ParameterTrial


class Examination(NamedTuple):
    """J and its gradients as a check has examined them: if J is the same, so is what was found.

    Attributes:
        loss: J(θ).
        gradients: autograd's, by position in θ.
        chosen: the method they were tried by.
        trials: what was found of them.
    """

    loss: float
    gradients: Mapping[int, AnalyticGradient]
    chosen: MethodChoice
    trials: Mapping[int, ParameterTrial]

    def is_of(self, loss: float, gradients: Mapping[int, AnalyticGradient]) -> bool:
        """Whether it is of this J: loss and gradients agree to the bit."""
        return self.loss == loss and all(
            np.array_equal(self.gradients[position].values, gradient.values) for position, gradient in gradients.items()
        )


def check_left_in_grad(
    model: nn.Module,
    functions: Sequence[Callable[..., Any]],
    computation: Computation,
    asked: Request,
    step: TrainingStep,
    examined: Examination | None = None,
) -> Report:
    """Judges `.grad`, as `check_module` documents `gradients="grad"`.

    Args:
        model: as in `check_backward`, like what follows.
        functions: the user's, for what they capture.
        computation: gives the function that computes the loss.
        asked: the options.
        step: what is known of the training step.
        examined: an earlier check at the same weights; used where it is of the same J.
    """
    started = time.perf_counter()
    threads = torch.get_num_threads()
    theta = theta_of(model, asked.include, asked.exclude)
    left = GradCheck(model, functions, computation, theta, asked, step)
    with Loan(model, functions, asked.mode, asked.dtype, asked.seed, step.start) as borrowed:
        objective = preflighted(model, computation(asked.dtype), borrowed, asked.dtype, left.drawn_in)
        gradients = autograd_gradients(objective, theta)
        left.check_replay(objective, gradients)
        numerical = Numerical(objective, theta, asked, threads)
        if examined is not None and examined.is_of(objective.loss, gradients):
            chosen, trials = examined.chosen, dict(examined.trials)
        elif left.cannot:
            chosen, trials = MethodChoice("exact"), {}
        else:
            with progress_bar(asked.progress) as bar:
                chosen, trials = run_method(objective, theta, asked, numerical, gradients, bar)
            check_unchanged(objective)
        judged = left.judged(objective, gradients, trials)
        rows = left.rows(judged)
        notes = notes_of(rows, objective, numerical, asked, chosen.method)
    return reported(
        rows,
        objective,
        numerical,
        asked,
        method=chosen.method,
        started=started,
        relative_error=over_theta(each.trial for each in judged.values()) if judged else float("nan"),
        notes=[*left.notes(rows), *chosen.notes, *notes],
    )
