"""The check of a candidate against a reference: the reference first, by differences, then the candidate beside it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from torch_gradcheck.against_reference.compared import compared
from torch_gradcheck.against_reference.computation import Computation, FunctionComputation, ModuleComputation
from torch_gradcheck.against_reference.judge import Judged, judged
from torch_gradcheck.against_reference.rows import row_of
from torch_gradcheck.against_reference.run import Run
from torch_gradcheck.against_reference.sides import Candidate, candidate_of, exact_run, given_values, rounded_runs
from torch_gradcheck.against_reference.upstream import Upstream
from torch_gradcheck.borrowing.loan import Start
from torch_gradcheck.methods.problem import posed
from torch_gradcheck.objective.function_call import function_call
from torch_gradcheck.objective.function_loss import FunctionLoss
from torch_gradcheck.objective.loss import ModuleLoss
from torch_gradcheck.pipeline.backward import judged as by_differences
from torch_gradcheck.precision.dtypes import name_of
from torch_gradcheck.reporting.facts import ParameterReport
from torch_gradcheck.reporting.progress import progress_bar
from torch_gradcheck.reporting.report import Report
from torch_gradcheck.reporting.words import listed
from torch_gradcheck.request import Request
from torch_gradcheck.verdicts.ratio import relative_error_over


def function_against_reference(
    function: Callable[..., Any], inputs: Any, reference: Callable[..., Any], request: Request
) -> Report:
    """The check of a function beside a reference, a function of the same arguments."""
    upstream = Upstream(request.seed)
    own, other = [
        FunctionComputation(FunctionLoss(function_call(each, inputs), request.seed), upstream)
        for each in (function, reference)
    ]
    return check_against_reference(own, other, request)


def module_against_reference(loss: ModuleLoss, reference: nn.Module, request: Request) -> Report:
    """The check of a model beside a reference, a module with the same names of parameters."""
    return check_against_reference(ModuleComputation(loss), ModuleComputation(replace(loss, model=reference)), request)


def check_against_reference(candidate: Computation, reference: Computation, request: Request) -> Report:
    """The report on a candidate; the reference's own report is `report.reference`.

    Args:
        candidate: runs as it is.
        reference: runs in float64, and in the candidate's dtypes to see what rounding does.
        request: the options.
    """
    started = time.perf_counter()
    start = Start(values=given_values(candidate.model, reference.model))
    found = candidate_of(candidate, request)
    own, exact = _reference(reference, found, request, start)
    rounded = rounded_runs(reference, found, request, start)
    verdicts = [judged(each, request.tolerance) for each in compared(found, exact, rounded)]
    rows = [row_of(each, None) for each in verdicts]
    return _report(own, verdicts, rows, started)


def _reference(computation: Computation, candidate: Candidate, request: Request, start: Start) -> tuple[Report, Run]:
    """The report on the reference's own gradient, and its exact run, in one loan."""
    with (
        progress_bar(request.progress) as progress,
        posed(computation.model, computation.loss, request, progress=progress, start=start) as problem,
    ):
        report = by_differences(problem, time.perf_counter())[0]
        return report, exact_run(problem, computation, candidate)


def _report(own: Report, verdicts: Sequence[Judged], rows: Sequence[ParameterReport], started: float) -> Report:
    ratio = relative_error_over((each.trial.analytic, each.compared.right) for each in verdicts)
    return replace(
        own,
        parameters=tuple(rows),
        relative_error=ratio,
        seconds=time.perf_counter() - started,
        dtype=listed(sorted({name_of(each.compared.entry.own_dtype) for each in verdicts})),
        culprit=None,
        notes=_notes(own),
        backward_spread=0.0,
        reference=own,
    )


def _notes(own: Report) -> list[str]:
    wrong = [row.name for row in own.mismatches]
    return [f"the reference's own gradient is wrong: {listed(wrong)}", *own.notes] if wrong else []
