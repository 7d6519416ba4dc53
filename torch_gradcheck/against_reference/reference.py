"""The reference itself: its own gradient checked by differences, and its numbers in float64, in one loan."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from torch_gradcheck.against_reference.runs.computation import Computation
from torch_gradcheck.against_reference.runs.run import Run
from torch_gradcheck.against_reference.runs.sides import Candidate, exact_run
from torch_gradcheck.against_reference.runs.written_arguments import written_by
from torch_gradcheck.borrowing.loan import Loan, Start
from torch_gradcheck.errors import (
    GradcheckError,
    InvalidRequestError,
    NonDeterministicLossError,
    NonFiniteLossError,
    NonScalarLossError,
    ProcessGroupError,
)
from torch_gradcheck.methods.posing import posed
from torch_gradcheck.methods.problem import Problem
from torch_gradcheck.objective.function_outputs import root_mean_square
from torch_gradcheck.objective.perturbation import real_view
from torch_gradcheck.objective.variables import objects_of
from torch_gradcheck.pipeline.backward import judged_by_leader
from torch_gradcheck.reporting.facts import ParameterReport, Role, Status
from torch_gradcheck.reporting.progress import SILENT, ProgressBar, progress_bar
from torch_gradcheck.reporting.report import Report
from torch_gradcheck.reporting.words import listed
from torch_gradcheck.request import Request
from torch_gradcheck.torch_internals.devices import lacks_float64_kernel
from torch_gradcheck.verdicts.rows import made_undecided

WRONG = "the reference's own gradient of it is wrong: there is nothing right to compare with"
CHECKED_BESIDE = "the reference's own gradient was checked beside the inputs"
UNPROVEN = "the reference's own gradient of it is {}, so that there is nothing proven to compare with"
WRITTEN = "the reference writes over its own inputs past autograd: what it returns may be of other numbers"

BESIDE = 1e-3
"""How far inputs are moved, relative to their root mean square, where ties at them leave the reference undecided."""

STREAM = 0x71E5
"""Added to the seed: the numbers drawn from the seed itself may be the inputs."""


@dataclass(frozen=True)
class Reference:
    """What is known of a reference.

    Attributes:
        report: on its own gradient, in float64 by centered differences.
        exact: its runs in float64 on the candidate's rounded inputs, one a computation that was asked for.
        has_drawn: whether it draws random numbers.
        has_drawn_alike: whether that left the generators in the state in which the candidate left them.
        written: the names of the arguments that it writes over, past autograd.
    """

    report: Report
    exact: Sequence[Run]
    has_drawn: bool
    has_drawn_alike: bool
    written: Sequence[str]


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
    try:
        with (
            progress_bar(request.progress) as progress,
            _posed(computations[0], candidate, request, start, progress) as problem,
        ):
            _ = problem.objective  # evaluated, or refused, before anything else
            exact = [exact_run(problem, each, candidate) for each in computations]
            has_drawn_alike = not candidate.drawn_to.has_moved()
            written = written_by(computations[0], problem)
            has_drawn = not problem.objective.random_state.is_empty
            report = _led(problem)
        decided = _decided(report, computations[0], candidate, request, start)
        return Reference(decided, exact, has_drawn, has_drawn_alike, written)
    except ProcessGroupError:  # of the ranks, whatever they share
        raise
    except GradcheckError as error:
        raise _of_reference(error) from error


def _led(problem: Problem) -> Report:
    """The report on the reference's own gradient, by the leader of the ranks that share the check."""
    return judged_by_leader(problem, time.perf_counter())[0]


def _posed(
    computation: Computation, candidate: Candidate, request: Request, start: Start, progress: ProgressBar = SILENT
) -> Loan[Problem]:
    there = replace(request, perturb=0.0)  # its values are moved already
    model, loss = computation.model, computation.loss
    return posed(model, loss, there, progress=progress, start=start, drawn_in=candidate.drawn_in)


def _decided(report: Report, computation: Computation, candidate: Candidate, request: Request, start: Start) -> Report:
    """The report, or that of a check beside the inputs where ties leave rows undecided that are not there.

    A reference of plain torch is right or wrong as a computation, wherever its inputs happen to be.
    """
    if report.mismatches or report.backward_spread or not _undecided(report):
        return report
    with _posed(computation, candidate, request, _beside_ties(computation, request.seed, start)) as problem:
        beside = _led(problem)
    if len(_undecided(beside)) >= len(_undecided(report)):
        return report
    note = (
        f"{CHECKED_BESIDE}, moved by {BESIDE:g} of their size: at the inputs themselves "
        f"differences do not decide {listed(_undecided(report))}, as where numbers tie"
    )
    return replace(beside, notes=[note, *beside.notes], loss=report.loss)


def _undecided(report: Report) -> list[str]:
    return [row.name for row in report if row.status is Status.UNDECIDED]


def _beside_ties(computation: Computation, seed: int, start: Start) -> Start:
    """The start with all that is on trial moved a little, so that no numbers tie."""
    generator = torch.Generator("cpu").manual_seed((seed + STREAM) % 2**63)
    variables = objects_of(computation.loss.variables)
    moving = [each for each in (*computation.model.parameters(), *variables) if each.requires_grad]
    moved = {each: _moved(start.values.get(each, each), generator) for each in moving}
    return replace(start, values={**start.values, **moved})


def _moved(tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    numbers = real_view(tensor.detach().resolve_conj()).to(torch.float64)
    noise = torch.randn(numbers.shape, generator=generator, dtype=torch.float64, device="cpu").to(numbers.device)
    finite = torch.isfinite(numbers)
    moved = numbers + BESIDE * root_mean_square(numbers[finite]) * noise.where(finite, torch.zeros_like(noise))
    return torch.view_as_complex(moved) if tensor.is_complex() else moved


def _of_reference(error: GradcheckError) -> GradcheckError:
    """The error, saying that it is the reference that cannot be checked."""
    if error.__cause__ is not None and lacks_float64_kernel(error.__cause__):
        return InvalidRequestError(
            "reference: it is computed in float64, and one of its operations has no kernel for that "
            f"({error.__cause__}): write it with operations that have one, plain torch."
        )
    text = str(error) if str(error).startswith("reference") else f"reference: {error}"
    if isinstance(error, NonFiniteLossError | NonDeterministicLossError):
        return type(error)(text, module=error.module)
    return type(error)(text) if isinstance(error, InvalidRequestError | NonScalarLossError) else error


def beside_own_rows(rows: Sequence[ParameterReport], own: Reference) -> list[ParameterReport]:
    """The rows of a candidate, undecided where the reference's own gradient is wrong or not proven.

    Where it is wrong and the reference writes over its inputs, so are outputs that differ: it is what accuses them.
    """
    beside = [_beside(row, own.report[row.name]) if _is_gradient_of(row, own.report) else row for row in rows]
    if not _is_spoiled(own):
        return beside
    return [made_undecided(row, WRITTEN) if row.status is Status.MISMATCH else row for row in beside]


def _is_spoiled(own: Reference) -> bool:
    """Whether the reference's gradient is wrong, and it writes over its inputs: it may be that of other numbers."""
    return bool(own.written and own.report.mismatches)


def _is_gradient_of(row: ParameterReport, own: Report) -> bool:
    return row.role is not Role.OUTPUT and row.name in own


def _beside(row: ParameterReport, own: ParameterReport) -> ParameterReport:
    if row.status in (Status.FROZEN, Status.UNDECIDED) or not _spoils(row, own):
        return row
    return made_undecided(
        row, WRONG if own.status is Status.MISMATCH else f"{UNPROVEN.format(own.status)}: {own.reason}"
    )


def _spoils(row: ParameterReport, own: ParameterReport) -> bool:
    """Whether the reference's own row leaves nothing to say of the candidate's.

    Of a gradient that is 0 to within the noise of J, nothing but that is known: a candidate is right beside it if it is
    0 as well, and wrong only if it is off by more than both sides of that noise.
    """
    if own.status in (Status.FLAT, Status.UNUSED):
        is_nonzero = row.status not in (Status.FLAT, Status.UNUSED)
        return is_nonzero and not (row.status is Status.MISMATCH and not row.max_abs_error <= 2 * own.noise)
    return own.status in (Status.MISMATCH, Status.UNDECIDED)


def on_reference(reference: Reference, rows: Sequence[ParameterReport]) -> list[str]:
    """The notes on a reference whose own gradient is wrong, or has rows of which nothing was proven.

    Args:
        reference: what is known of it.
        rows: of the candidate, beside these.
    """
    own = reference.report
    undecided = [row.name for row in rows if row.status is Status.UNDECIDED]
    zero = [row.name for row in own if row.status in (Status.FLAT, Status.UNUSED) and row.name in undecided]
    wrong, unproven = own.mismatches, [*_undecided(own), *zero]
    notes = [f"reference: {note}" for note in own.notes]
    if wrong:
        culprit = f"; the culprit is {own.culprit}" if own.culprit else ""
        found = listed(wrong, in_words=_in_words)
        return [
            *_on_written(reference),
            f"the reference's own gradient is wrong, by centered differences in float64: {found}{culprit}",
            *notes,
        ]
    if own.backward_spread:
        return ["two equal runs of the reference's own backward differ: nothing can be compared with it", *notes]
    moved = [note for note in own.notes if note.startswith(CHECKED_BESIDE)]
    return [*moved, *([f"the reference's own gradient is not proven: {listed(unproven)}"] if unproven else [])]


def _on_written(own: Reference) -> list[str]:
    if not _is_spoiled(own):
        return []
    return [
        f"the reference writes over {listed(own.written)} past autograd (.data, numpy or a raw pointer): what it "
        "returns, or its gradient, is of other numbers than the candidate's. Have it work on a .clone()"
    ]


def _in_words(row: ParameterReport) -> str:
    return f"{row.name} ({row.diagnosis.message if row.diagnosis else row.reason})"
