"""The reference itself: its own gradient checked by differences, and its numbers in float64, in one loan."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch_gradcheck.against_reference.computation import Computation
from torch_gradcheck.against_reference.run import Run
from torch_gradcheck.against_reference.sides import Candidate, exact_run
from torch_gradcheck.borrowing.loan import Start
from torch_gradcheck.errors import (
    GradcheckError,
    InvalidRequestError,
    NonDeterministicLossError,
    NonFiniteLossError,
    NonScalarLossError,
)
from torch_gradcheck.methods.problem import posed
from torch_gradcheck.pipeline.backward import judged
from torch_gradcheck.reporting.facts import ParameterReport, Role, Status
from torch_gradcheck.reporting.progress import progress_bar
from torch_gradcheck.reporting.report import Report
from torch_gradcheck.reporting.words import listed
from torch_gradcheck.request import Request

WRONG = "the reference's own gradient of it is wrong: there is nothing right to compare with"
UNPROVEN = "the reference's own gradient of it is undecided, so that there is nothing proven to compare with"


@dataclass(frozen=True)
class Reference:
    """What is known of a reference.

    Attributes:
        report: on its own gradient, in float64 by centered differences.
        exact: its runs in float64 on the candidate's rounded inputs, one a computation that was asked for.
        has_drawn: whether it draws random numbers.
    """

    report: Report
    exact: Sequence[Run]
    has_drawn: bool


def reference_of(
    computations: Sequence[Computation], candidate: Candidate, request: Request, start: Start
) -> Reference:
    """Checks the reference's own gradient and takes its numbers in float64.

    `method`, `eps`, `tolerance`, `seed` and `hold_detached` of the request are those of that check. Random numbers are
    drawn in the candidate's precision: in float64 the same generator would give others.

    Args:
        computations: the reference, then the same under other gradients of its outputs.
        candidate: in whose runs these gradients were drawn.
        request: the options.
        start: the values that the reference is given.

    Raises:
        InvalidRequestError: it does not fit the inputs, or returns something else than the candidate.
        NonFiniteLossError, NonDeterministicLossError, NonScalarLossError: it cannot be checked.
    """
    model, loss = computations[0].model, computations[0].loss
    there = replace(request, perturb=0.0)  # its values are moved already
    try:
        with (
            progress_bar(request.progress) as progress,
            posed(model, loss, there, progress=progress, start=start, drawn_in=candidate.drawn_in) as problem,
        ):
            _ = problem.objective  # evaluated, or refused, before anything else
            exact = [exact_run(problem, each, candidate) for each in computations]
            has_drawn = not problem.objective.random_state.is_empty
            return Reference(judged(problem, time.perf_counter())[0], exact, has_drawn)
    except GradcheckError as error:
        raise _of_reference(error) from error


def _of_reference(error: GradcheckError) -> GradcheckError:
    """The error, saying that it is the reference that cannot be checked."""
    text = str(error) if str(error).startswith("reference") else f"reference: {error}"
    if isinstance(error, NonFiniteLossError | NonDeterministicLossError):
        return type(error)(text, module=error.module)
    return type(error)(text) if isinstance(error, InvalidRequestError | NonScalarLossError) else error


def beside_own_rows(rows: Sequence[ParameterReport], own: Report) -> list[ParameterReport]:
    """The rows of a candidate, undecided where the reference's own gradient is wrong or was not decided."""
    return [_beside(row, own[row.name]) if _is_gradient_of(row, own) else row for row in rows]


def _is_gradient_of(row: ParameterReport, own: Report) -> bool:
    return row.role is not Role.OUTPUT and row.name in own


def _beside(row: ParameterReport, own: ParameterReport) -> ParameterReport:
    if own.status not in (Status.MISMATCH, Status.UNDECIDED) or row.status in (Status.FROZEN, Status.UNDECIDED):
        return row
    reason = WRONG if own.status is Status.MISMATCH else f"{UNPROVEN}: {own.reason}"
    return replace(row, status=Status.UNDECIDED, reason=reason, mismatched=0, diagnosis=None, map=None)


def on_reference(own: Report) -> list[str]:
    """The notes on a reference whose own gradient is wrong, or has rows of which nothing was proven."""
    wrong, unproven = own.mismatches, [row.name for row in own if row.status is Status.UNDECIDED]
    if wrong:
        culprit = f"; the culprit is {own.culprit}" if own.culprit else ""
        found = listed(wrong, in_words=_in_words)
        return [
            f"the reference's own gradient is wrong, by centered differences in float64: {found}{culprit}",
            *own.notes,
        ]
    if own.backward_spread:
        return ["two equal runs of the reference's own backward differ: nothing can be compared with it", *own.notes]
    return [f"the reference's own gradient is not proven: {listed(unproven)}"] if unproven else []


def _in_words(row: ParameterReport) -> str:
    return f"{row.name} ({row.diagnosis.message if row.diagnosis else row.reason})"
