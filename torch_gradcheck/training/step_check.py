"""The check of what a training step left in `.grad`: the same pipeline, in the step's own mode, then `.grad` judged."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from torch_gradcheck.analytic import AnalyticGradient, autograd_gradients
from torch_gradcheck.borrowing.borrow import Loan
from torch_gradcheck.compare import over_theta
from torch_gradcheck.method import Chosen
from torch_gradcheck.notes import notes_of
from torch_gradcheck.numerical import Numerical, Tried
from torch_gradcheck.progress import progress_bar
from torch_gradcheck.reference import tried_by_method
from torch_gradcheck.report import Report
from torch_gradcheck.reporting import reported
from torch_gradcheck.request import Request
from torch_gradcheck.settle import check_unchanged, settled_objective
from torch_gradcheck.theta import theta_of
from torch_gradcheck.training.in_grad import LeftInGrad
from torch_gradcheck.training.training_step import Computation, TrainingStep


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
    chosen: Chosen
    trials: Mapping[int, Tried]

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
    left = LeftInGrad(model, functions, computation, theta, asked, step)
    with Loan(model, functions, asked.mode, asked.dtype, asked.seed, step.start) as borrowed:
        objective = settled_objective(model, computation(asked.dtype), borrowed, asked.dtype, left.drawn_in)
        gradients = autograd_gradients(objective, theta)
        left.check_replay(objective, gradients)
        numerical = Numerical(objective, theta, asked, threads)
        if examined is not None and examined.is_of(objective.loss, gradients):
            chosen, trials = examined.chosen, dict(examined.trials)
        elif left.cannot:
            chosen, trials = Chosen("exact"), {}
        else:
            with progress_bar(asked.progress) as bar:
                chosen, trials = tried_by_method(objective, theta, asked, numerical, gradients, bar)
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
        relative_error=over_theta(each.tried for each in judged.values()) if judged else float("nan"),
        notes=[*left.notes(rows), *chosen.notes, *notes],
    )
