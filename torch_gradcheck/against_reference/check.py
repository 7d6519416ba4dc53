"""The check of a candidate against a reference: the reference first, by differences, then the candidate beside it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import nn

from torch_gradcheck.against_reference.contract import contract_of_candidate
from torch_gradcheck.against_reference.culprit.compiler import compiler_at_fault
from torch_gradcheck.against_reference.culprit.hidden_mistakes import told_hidden
from torch_gradcheck.against_reference.culprit.search import culprit_beside, with_hidden
from torch_gradcheck.against_reference.draws import beside_other_draws
from torch_gradcheck.against_reference.equal_runs import marked, runs_apart
from torch_gradcheck.against_reference.judging.judge import Judged
from torch_gradcheck.against_reference.kind.diagnose import diagnosed
from torch_gradcheck.against_reference.kind.rescaled import rescaled_gradients
from torch_gradcheck.against_reference.notes import notes_of, on_other_dtypes, on_refusal
from torch_gradcheck.against_reference.pair import Pair, judged_pair, told_under
from torch_gradcheck.against_reference.reference import Reference, beside_own_rows, reference_of
from torch_gradcheck.against_reference.rows import row_of, with_frozen
from torch_gradcheck.against_reference.runs.computation import Computation, FunctionComputation, ModuleComputation
from torch_gradcheck.against_reference.runs.counterparts import check_training_flags, counterparts_of
from torch_gradcheck.against_reference.runs.placing import Place, place_of
from torch_gradcheck.against_reference.runs.sides import Candidate
from torch_gradcheck.against_reference.runs.upstream import OtherGraphError, Upstream
from torch_gradcheck.against_reference.start_of_difference import beside_equal_runs
from torch_gradcheck.diagnosis.culprit.attribution import Culprit
from torch_gradcheck.objective.function_call import function_call
from torch_gradcheck.objective.function_loss import FunctionLoss, WrittenArgumentsError
from torch_gradcheck.objective.loss import ModuleLoss
from torch_gradcheck.objective.perturbed_theta import moved_theta
from torch_gradcheck.precision.dtypes import name_of
from torch_gradcheck.reporting.facts import ParameterReport
from torch_gradcheck.reporting.report import Report
from torch_gradcheck.reporting.words import listed
from torch_gradcheck.request import Request
from torch_gradcheck.verdicts.ratio import relative_error_over


def function_against_reference(
    function: Callable[..., Any], inputs: Any, reference: Callable[..., Any], request: Request
) -> Report:
    """The check of a function beside a reference, a function of the same arguments, by the names that it has for them.

    Where one of them writes to its arguments in place, which autograd does not allow of leaves, both get copies.
    """
    upstream = Upstream(request.seed)
    own, other = [
        FunctionComputation(FunctionLoss(call, request.seed, skips_infinities=True), upstream)
        for call in (
            function_call(function, inputs, in_its_memory=True),
            replace(function_call(reference, inputs), named_after=function),
        )
    ]
    try:
        return _with_graphs_of_both(own, other, request)
    except WrittenArgumentsError:
        return _with_graphs_of_both(own.on_copies(), other.on_copies(), request)


def _with_graphs_of_both(own: FunctionComputation, other: FunctionComputation, request: Request) -> Report:
    try:
        return check_against_reference(own, other, request)
    except OtherGraphError:
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
    if request.mode == "keep":
        check_training_flags(candidate.model, reference.model)
    moved = moved_theta(candidate.model, request.perturb, request.seed) if request.perturb else {}
    place = place_of(candidate)
    pairs = counterparts_of(candidate.model, reference.model, moved, place)
    reference = place.of(reference)
    pair = Pair(candidate, reference, request, pairs)
    found = pair.candidate_runs()
    own = reference_of([reference, *reference.alone().values()], found, request, pairs.start(pairs.exact))
    return request.team.lead(pair, lambda: _beside(pair, found, own, place, started))


def _beside(pair: Pair, found: Candidate, own: Reference, place: Place, started: float) -> Report:
    """The report on a candidate beside what is known of the reference; made by the leader of several ranks alone.

    Args:
        pair: both.
        found: what the candidate computed.
        own: what is known of the reference.
        place: where the reference was computed.
        started: `time.perf_counter()` at the beginning.
    """
    request, candidate = pair.request, pair.candidate
    verdicts, under = judged_pair(pair, found, own.exact)
    beside, hidden = with_hidden(pair, found, own.exact[0], verdicts)
    diagnoses = diagnosed(
        beside, request.beyond_rounding, lambda: [] if hidden.name else rescaled_gradients(pair, own.exact[0])
    )
    rows = [row_of(*each) for each in zip(beside, diagnoses, strict=True)]
    rows = beside_own_rows(told_hidden(told_under(rows, under), hidden.name), own)
    apart = runs_apart(verdicts, request.tolerance)
    rows = marked(beside_other_draws(rows, beside, found.has_drawn, own), apart)
    culprit = compiler_at_fault(pair, found, verdicts, own.exact) or hidden
    if not culprit.notes:
        culprit = culprit_beside(pair, found, own.exact[0], verdicts, rows)
    on_dtypes = [*on_other_dtypes(verdicts), *on_refusal(verdicts)]
    notes = [*notes_of(candidate, found, own, rows, request, culprit.notes), *on_dtypes, *place.notes]
    report = _report(own.report, beside, rows, culprit, notes, started)
    unmeasured = [row.name for row in own.report.mismatches]
    contract = contract_of_candidate(pair, verdicts, unmeasured, apart)
    report = beside_equal_runs(report, pair, apart)
    everything = tuple(with_frozen(report.parameters, found.theta))
    return replace(report, parameters=everything, contract=contract, seconds=time.perf_counter() - started)


def _report(
    own: Report,
    verdicts: Sequence[Judged],
    rows: Sequence[ParameterReport],
    culprit: Culprit,
    notes: list[str],
    started: float,
) -> Report:
    decided = [each for each, row in zip(verdicts, rows, strict=True) if row.status.is_decided]
    with np.errstate(all="ignore"):
        ratio = relative_error_over((each.trial.analytic, each.compared.right) for each in decided)
    return replace(
        own,
        parameters=tuple(rows),
        relative_error=ratio if decided else None,
        seconds=time.perf_counter() - started,
        dtype=listed(sorted({name_of(each.compared.entry.own_dtype) for each in verdicts})),
        culprit=culprit.name,
        place=culprit.place,
        notes=notes,
        backward_spread=0.0,
        reference=own,
    )
