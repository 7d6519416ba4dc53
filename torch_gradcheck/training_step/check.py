"""The check of what a training step left in `.grad`: the same pipeline, in the step's own mode, then `.grad` judged."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from torch import nn

from torch_gradcheck.diagnosis.unrepeatable import Unrepeatable
from torch_gradcheck.gradients.analytic import AnalyticGradient
from torch_gradcheck.methods.agreement import led
from torch_gradcheck.methods.choice import MethodChoice, Trials, run_method
from torch_gradcheck.methods.posing import posed
from torch_gradcheck.methods.problem import Problem
from torch_gradcheck.methods.summary import notes_of, reported
from torch_gradcheck.objective.loss import Loss
from torch_gradcheck.pipeline.examination import Examination
from torch_gradcheck.reporting.facts import ParameterReport, Status
from torch_gradcheck.reporting.progress import progress_bar
from torch_gradcheck.reporting.report import Report
from torch_gradcheck.request import Request
from torch_gradcheck.training_step.grad_check import GradCheck
from torch_gradcheck.training_step.not_finite import on_non_finite
from torch_gradcheck.training_step.step import TrainingStep
from torch_gradcheck.verdicts.rows import over_theta, refuse_unreached


def check_left_in_grad(
    model: nn.Module,
    loss: Loss,
    request: Request,
    step: TrainingStep,
    examined: Examination | None = None,
) -> Report:
    """Judges `.grad`, as `check_module` documents `gradients="grad"`.

    Args:
        model: what was trained.
        loss: the user's loss over it, on the batches of the step.
        request: the options.
        step: what is known of the training step.
        examined: an earlier check at the same weights; its noise, engine and trials are used where it is of the same J.
    """
    started = time.perf_counter()
    grad_check = GradCheck(model, loss, request, step)
    theta, drawn_in = grad_check.theta, grad_check.drawn_in
    with (
        progress_bar(request.progress) as progress,
        posed(
            model, loss, request, progress=progress, start=step.start or step.buffers, theta=theta, drawn_in=drawn_in
        ) as problem,
    ):
        return led(problem, lambda: _judged(problem, grad_check, examined, started))


def _judged(problem: Problem, grad_check: GradCheck, examined: Examination | None, started: float) -> Report:
    """The report on `.grad`, the model of the problem being lent."""
    autograd_float64, unrepeatable = problem.repeated.gradients, Unrepeatable.of(problem)
    grad_check.compare_with_step(problem.objective, autograd_float64)
    problem.give_back_freed_memory()
    choice, trials = _tried(problem, autograd_float64, grad_check.why_unjudged, examined)
    judged = grad_check.judged(problem.objective, autograd_float64, trials)
    rows = unrepeatable.marked(grad_check.rows(judged, trials))
    refuse_unreached(rows, problem.objective.words)
    spoilt = on_non_finite(problem, grad_check.left, autograd_float64, grad_check.replays)
    notes = [*spoilt.notes, *grad_check.notes(rows), *notes_of(problem, choice, rows, autograd_float64)]
    culprit = _unless_wrong(rows, unrepeatable.culprit)
    culprit, place = (culprit, unrepeatable.place) if spoilt.culprit is None else (spoilt.culprit, spoilt.place)
    return reported(
        problem,
        choice,
        rows,
        started=started,
        relative_error=over_theta(rows, {position: each.trial for position, each in judged.items()}),
        notes=unrepeatable.among(notes),
        culprit=culprit,
        place="" if culprit is None else place,
        backward_spread=unrepeatable.spread,
    )


def _tried(
    problem: Problem, gradients: Mapping[int, AnalyticGradient], why_unjudged: str, examined: Examination | None
) -> tuple[MethodChoice, Trials]:
    """Autograd's own gradients against J: as examined before, or anew; not at all where nothing can be judged."""
    examined = examined and examined.among(problem.theta)
    if examined is not None and examined.is_of(problem, gradients):
        problem.take_over(examined.noise, examined.refused)
        return examined.choice, dict(examined.trials)
    if why_unjudged:
        return MethodChoice("exact"), {}
    return run_method(problem, gradients)


def _unless_wrong(rows: Sequence[ParameterReport], culprit: str | None) -> str | None:
    """The culprit of a backward that is not one function, unless a row is wrong in another way."""
    return None if any(row.status is Status.MISMATCH for row in rows) else culprit
