"""The check of a backward: the gradients of J put on trial, tried, judged and explained, stage by stage."""

from __future__ import annotations

import time
from collections.abc import Mapping

from torch import nn

from torch_gradcheck.borrowing.loan import Start
from torch_gradcheck.diagnosis.findings import findings_of
from torch_gradcheck.diagnosis.first_order_only import double_backward_of
from torch_gradcheck.diagnosis.unrepeatable import Unrepeatable
from torch_gradcheck.gradients.analytic import AnalyticGradient
from torch_gradcheck.gradients.by_hand import given_gradients
from torch_gradcheck.methods.agreement import led
from torch_gradcheck.methods.choice import MethodChoice, Trials, run_method
from torch_gradcheck.methods.equal_gradients import refuse_unequal
from torch_gradcheck.methods.posing import posed
from torch_gradcheck.methods.problem import Problem
from torch_gradcheck.methods.summary import notes_of, reported
from torch_gradcheck.objective.loss import Loss
from torch_gradcheck.pipeline.examination import Examination
from torch_gradcheck.reporting.facts import ParameterReport
from torch_gradcheck.reporting.progress import progress_bar
from torch_gradcheck.reporting.report import Report
from torch_gradcheck.request import Request
from torch_gradcheck.verdicts.rows import excused, frozen_row, linear_in, over_theta, refuse_unreached


def check_backward(
    model: nn.Module, loss: Loss, request: Request, start: Start | None = None
) -> tuple[Report, Examination | None]:
    """The pipeline; also hands on what it examined, for another check of the same J, to the rank that leads.

    Args:
        model: what is checked.
        loss: the user's loss over it.
        request: the options.
        start: what evaluations of J start from; None: the seed, and what the model holds now.
    """
    started = time.perf_counter()
    with (
        progress_bar(request.progress) as progress,
        posed(model, loss, request, progress=progress, start=start) as problem,
    ):
        return judged_by_leader(problem, started)


def judged_by_leader(problem: Problem, started: float) -> tuple[Report, Examination | None]:
    """What `judged` gives, by the leader of the ranks that share the check; the others lend it a hand."""
    examinations: list[Examination] = []

    def work() -> Report:
        report, examination = judged(problem, started)
        examinations.append(examination)
        return report

    report = led(problem, work)
    return report, examinations[0] if examinations else None


def judged(problem: Problem, started: float) -> tuple[Report, Examination]:
    """The report on a problem whose model is lent, and what was examined for it.

    Args:
        problem: what is asked.
        started: `time.perf_counter()` at the beginning.
    """
    gradients, unrepeatable = _on_trial(problem)
    choice, trials = run_method(problem, gradients)
    rows = [_row(problem, choice, position, trials) for position in range(len(problem.theta))]
    rows = linear_in(problem.slope, rows, problem.theta)
    rows = unrepeatable.marked(excused(rows, problem.objective, problem.theta))
    refuse_unreached(rows, problem.objective.words)
    found = findings_of(problem, rows, unrepeatable.decided(trials), gradients)
    notes = notes_of(problem, choice, rows, gradients)
    report = reported(
        problem,
        choice,
        found.rows,
        started=started,
        relative_error=over_theta(rows, trials),
        notes=unrepeatable.among([*found.notes, *notes]),
        culprit=found.culprit if found.notes else unrepeatable.culprit,
        place=found.place if found.notes else unrepeatable.place,
        backward_spread=unrepeatable.spread or problem.objective.apart_with_graph,
    )
    return report, Examination.of(problem, gradients, choice, trials)


def _on_trial(problem: Problem) -> tuple[Mapping[int, AnalyticGradient], Unrepeatable]:
    """The gradients on trial, by position in θ, and what runs of the backward do not agree on.

    The gradients are those given by hand, which no backward has made, or autograd's.
    """
    given = problem.request.gradients
    if isinstance(given, Mapping):
        return given_gradients(given, problem.theta), Unrepeatable()
    backward = problem.backward if problem.slope is None else double_backward_of(problem)
    refuse_unequal(problem, backward.gradients)
    return backward.gradients, Unrepeatable.of(problem)


def _row(problem: Problem, choice: MethodChoice, position: int, trials: Trials) -> ParameterReport:
    entry = problem.theta[position]
    if position not in trials:
        return frozen_row(entry)
    return choice.method.row(entry, trials[position], problem.request.tolerance)
