"""The notes on a check against a reference: what its reader should know and no row says."""

from __future__ import annotations

from collections.abc import Sequence

from torch_gradcheck.against_reference.alike import on_outputs
from torch_gradcheck.against_reference.callers_autocast import CallersAutocast
from torch_gradcheck.against_reference.computation import Computation
from torch_gradcheck.against_reference.draws import on_draws
from torch_gradcheck.against_reference.reference import Reference, on_reference
from torch_gradcheck.against_reference.sides import Candidate
from torch_gradcheck.objective.perturbed_theta import on_perturbed
from torch_gradcheck.reporting.facts import ParameterReport
from torch_gradcheck.request import Request


def notes_of(
    candidate: Computation,
    found: Candidate,
    own: Reference,
    rows: Sequence[ParameterReport],
    request: Request,
    on_culprit: Sequence[str],
) -> list[str]:
    """The notes, what is wrong with the reference first, then where the candidate is.

    Args:
        candidate: on trial.
        found: its runs.
        own: what is known of the reference.
        rows: of the report.
        request: the options.
        on_culprit: the notes on where the mistake is.
    """
    notes = [
        *on_reference(own.report),
        *on_culprit,
        on_outputs(found.runs[0].outputs, own.exact[0].outputs),
        on_draws(found.has_drawn, own.has_drawn),
        CallersAutocast().note,
        on_perturbed(request.perturb, request.seed),
        *candidate.notes,
        on_powers_of_two(rows),
    ]
    return [note for note in notes if note]


def on_powers_of_two(rows: Sequence[ParameterReport]) -> str:
    """The note on sizes that blocks of a kernel divide; "" where one of them is no power of two."""
    sizes = sorted({size for row in rows for size in row.shape if size > 1})
    if not sizes or any(size & (size - 1) for size in sizes):
        return ""
    return (
        f"every dimension is a power of two ({', '.join(map(str, sizes))}): a tail after the last block was not tried; "
        "sizes such as 100 or 33 would"
    )
