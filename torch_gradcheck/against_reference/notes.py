"""The notes on a check against a reference: what its reader should know and no row says."""

from __future__ import annotations

from collections.abc import Sequence

from torch_gradcheck.against_reference.draws import on_draws
from torch_gradcheck.against_reference.judging.judge import Judged
from torch_gradcheck.against_reference.reference import Reference, on_reference
from torch_gradcheck.against_reference.runs.alike import on_outputs
from torch_gradcheck.against_reference.runs.callers_autocast import CallersAutocast
from torch_gradcheck.against_reference.runs.compiled_code import on_compiled, on_scripted
from torch_gradcheck.against_reference.runs.computation import Computation
from torch_gradcheck.against_reference.runs.sides import Candidate
from torch_gradcheck.objective.perturbed_theta import on_perturbed
from torch_gradcheck.precision.dtypes import epsilon, name_of
from torch_gradcheck.reporting.facts import ParameterReport, Role, Status
from torch_gradcheck.reporting.words import listed
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
        *on_reference(own, rows),
        *on_culprit,
        on_wrong_outputs(rows),
        on_outputs(found.runs[0].outputs, own.exact[0].outputs),
        on_draws(found.has_drawn, own.has_drawn),
        CallersAutocast().note,
        on_perturbed(request.perturb, request.seed),
        on_compiled(found.compiled_code),
        on_scripted(candidate),
        *candidate.notes,
        on_powers_of_two(rows),
    ]
    return [note for note in notes if note]


def on_refusal(verdicts: Sequence[Judged]) -> list[str]:
    """The note on a reference that cannot run in the candidate's dtype."""
    refused = [each.compared for each in verdicts if each.compared.refusal]
    if not refused:
        return []
    dtype = name_of(max([each.entry.own_dtype for each in refused], key=epsilon))
    return [
        f"the reference does not run in {dtype} ({refused[0].refusal}): what rounding does is measured in float64, "
        f"with every result rounded to {dtype}"
    ]


def on_other_dtypes(verdicts: Sequence[Judged]) -> list[str]:
    """The note on outputs that the reference, run on inputs of the candidate's dtypes, returns in another dtype."""
    others = [
        f"{each.entry.name} is {name_of(each.entry.own_dtype)} ({name_of(each.reference_dtype)} from the reference)"
        for each in [judged.compared for judged in verdicts]
        if each.reference_dtype is not None and each.reference_dtype is not each.entry.own_dtype
    ]
    if not others:
        return []
    return [f"another dtype than the reference returns of the same inputs: {listed(others)}; values alone are compared"]


def on_wrong_outputs(rows: Sequence[ParameterReport]) -> str:
    """The note on gradients that are wrong beside a wrong output; "" where one of both is right."""
    wrong = [row for row in rows if row.status is Status.MISMATCH]
    outputs = [row.name for row in wrong if row.role is Role.OUTPUT]
    if not outputs or len(outputs) == len(wrong):
        return ""
    verb = "is" if len(outputs) == 1 else "are"
    return (
        f"{listed(outputs)} {verb} wrong as well: the gradients of a wrong forward are wrong with it, so mend the "
        "forward first"
    )


def on_powers_of_two(rows: Sequence[ParameterReport]) -> str:
    """The note on sizes that blocks of a kernel divide; "" where one of them is no power of two."""
    sizes = sorted({size for row in rows for size in row.shape if size > 1})
    if not sizes or any(size & (size - 1) for size in sizes):
        return ""
    return (
        f"every dimension is a power of two ({', '.join(map(str, sizes))}): a tail after the last block was not tried; "
        "sizes such as 100 or 33 would"
    )
