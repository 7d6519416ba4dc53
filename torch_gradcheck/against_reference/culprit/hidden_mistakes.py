"""Mistakes of single modules that the rounding of a whole model hides: found in the module, looked for in the whole.

A module that is wrong by 1 % moves the gradients of a deep model by a fraction of what bfloat16 loses there, and is
wrong all the same. But a module that is not what the reference's is of that name need not be wrong: a factor may have
moved into another one. So two things are asked. What would its errors do by themselves? They are put into the
reference's run in float64, where nothing hides them, beside what rounding in that module alone does. And are they in
the candidate's gradients? What these are off by, e, is projected on what they do, d: ⟨e, d⟩ / ⟨d, d⟩ is 1 where they
are, and 0 where something else makes up for them, give or take what it is for runs of the reference that round.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from torch_gradcheck.against_reference.culprit.injected_errors import InjectedErrors
from torch_gradcheck.against_reference.culprit.single_modules import SingleModule
from torch_gradcheck.against_reference.judging.compared import Compared, compared
from torch_gradcheck.against_reference.judging.judge import Judged, judged
from torch_gradcheck.against_reference.pair import Pair
from torch_gradcheck.against_reference.runs.counterparts import parts_of_gradients
from torch_gradcheck.against_reference.runs.run import Run, ran
from torch_gradcheck.against_reference.runs.sides import Candidate, lent
from torch_gradcheck.arrays import Floats
from torch_gradcheck.objective.theta import ThetaEntry, theta_of
from torch_gradcheck.precision.mode import PrecisionMode
from torch_gradcheck.reporting.facts import ParameterReport, Role, Status
from torch_gradcheck.verdicts.entry_check import Outcome

PRESENT = 0.5
"""From this share of what a module's errors do on, they are in the candidate's gradients rather than not."""

BEYOND_RUNS = 3.0
"""And, of a module whose outputs are others, if it is this many times the share in runs of the reference that round.
Factors move from module to module in the forward, and not in the backward alone."""

EXACT = float(np.finfo(np.float64).eps)
"""Machine epsilon of the run that errors are put into."""


def hidden_in(
    pair: Pair, found: Candidate, exact: Run, verdicts: Sequence[Judged], single: SingleModule, alone: Sequence[Judged]
) -> list[Judged] | None:
    """The verdicts with those on the tensors that a module's errors spoil; None where they are not in the candidate.

    Args:
        pair: the candidate and its reference.
        found: what the candidate computed.
        exact: what the reference computed in float64.
        verdicts: on the whole.
        single: the module.
        alone: the verdicts on it alone.
    """
    wrong = _wrong(alone)
    try:
        own, *rounded = _runs(pair, found, single, wrong, [_off(wrong), *_off_by_rounding(wrong)])
    except Exception:  # the module is called otherwise in the reference: there is no place for the errors
        return None
    spoiled = [replace(each, epsilon=EXACT) for each in compared(replace(found, runs=[own]), exact, rounded)]
    share, of_rounding = _shares(verdicts, _effect(spoiled))
    moves = any(each.compared.entry.role is Role.OUTPUT for each in wrong)
    if not (_is_proven(share, of_rounding) if moves else _may_be(share, of_rounding)):
        return None
    tolerance = pair.request.beyond_rounding
    beside = zip(verdicts, [judged(each, tolerance) for each in spoiled], strict=True)
    return [_marked(new) if _is_spoiled(new, tolerance) else old for old, new in beside]


def is_seen_in(
    pair: Pair, found: Candidate, exact: Run, verdicts: Sequence[Judged], single: SingleModule, alone: Sequence[Judged]
) -> bool:
    """Whether the errors of a module that is wrong alone are in what the candidate is off by; see `hidden_in`.

    What nothing depends on, such as a figure that is only logged, spoils nothing.
    """
    wrong = _wrong(alone)
    off = [np.where(np.isfinite(each), each, 0.0) for each in _off(wrong)]
    infinite = [np.where(np.isinf(each.compared.right), each.compared.candidate[0], np.nan) for each in wrong]
    try:
        (own,) = _runs(pair, found, single, wrong, [off], infinite)
    except Exception:  # as in `hidden_in`
        return False
    share, _ = _shares(verdicts, _effect(compared(replace(found, runs=[own]), exact, [])))
    return share > PRESENT


def _wrong(alone: Sequence[Judged]) -> list[Judged]:
    """Those that are wrong: what is right spoils nothing."""
    return [each for each in alone if each.is_wrong]


def _effect(spoiled: Sequence[Compared]) -> list[Floats]:
    return [each.candidate[0] - each.right for each in spoiled]


def _is_proven(share: float, of_rounding: float) -> bool:
    return share > max(PRESENT, BEYOND_RUNS * of_rounding)


def _may_be(share: float, of_rounding: float) -> bool:
    """Whether the errors are not seen to be missing: the module is wrong alone, and its outputs are right."""
    return share > PRESENT or share + BEYOND_RUNS * of_rounding > 1


def _is_spoiled(each: Judged, tolerance: float) -> bool:
    """Whether a module's errors alone move a tensor, and by more than rounding in this module does and than passes."""
    size, off = np.linalg.norm(each.compared.right), np.linalg.norm(each.compared.candidate[0] - each.compared.right)
    return each.is_wrong or (each.rounding_ratio > 1 and bool(off > tolerance * size))


def _marked(each: Judged) -> Judged:
    """The verdict with each entry that is off as a mismatch, where none is off by enough alone."""
    if each.is_wrong:
        return each
    off = each.compared.candidate[0] != each.compared.right
    outcome = np.where(off, Outcome.MISMATCH, Outcome.MATCH).astype(np.int8)
    return replace(each, trial=replace(each.trial, results=replace(each.trial.results, outcome=outcome)))


def told_hidden(rows: Sequence[ParameterReport], module: str | None) -> list[ParameterReport]:
    """The rows, those that are wrong by the errors of this module alone saying so; None: there is no such module."""
    said = f"by the errors of {module} alone, which the rounding of all others hides"
    return [
        replace(row, reason=f"{row.reason}, {said}" if row.reason else said)
        if row.status is Status.MISMATCH and module is not None
        else row
        for row in rows
    ]


def _off(verdicts: Sequence[Judged]) -> list[Floats]:
    """What the candidate's tensors are off by."""
    return [each.compared.candidate[0] - each.compared.right for each in verdicts]


def _off_by_rounding(verdicts: Sequence[Judged]) -> list[list[Floats]]:
    """What the reference's are off by, in each of its runs that round."""
    runs = range(len(verdicts[0].compared.rounded))
    return [[each.compared.rounded[k] - each.compared.right for each in verdicts] for k in runs]


def _shares(verdicts: Sequence[Judged], effect: Sequence[Floats]) -> tuple[float, float]:
    """How much of what a module's errors do is in what the candidate is off by, and at most in runs that round."""
    weights = [1 / float(np.mean(each.bars.variance)) if each.bars.variance.any() else 0.0 for each in verdicts]
    share, *of_rounding = [_share(off, effect, weights) for off in (_off(verdicts), *_off_by_rounding(verdicts))]
    return share, max(map(abs, of_rounding))


def _share(off: Sequence[Floats], effect: Sequence[Floats], weights: Sequence[float]) -> float:
    """⟨e, d⟩ / ⟨d, d⟩ over all tensors, each in units of what rounding does to its entries."""
    pairs = list(zip(off, effect, weights, strict=True))
    size = sum(weight * float(np.dot(d, d)) for _, d, weight in pairs)
    return sum(weight * float(np.dot(np.nan_to_num(e), d)) for e, d, weight in pairs) / size if size else 0.0


def _runs(
    pair: Pair,
    found: Candidate,
    single: SingleModule,
    alone: Sequence[Judged],
    errors: Sequence[Sequence[Floats]],
    instead: Sequence[Floats] = (),
) -> list[Run]:
    """The reference's runs in float64 with each of these errors in the module; see `InjectedErrors`."""
    reference, entries = pair.reference, [each.compared.entry for each in alone]
    with lent(reference, pair.request, pair.counterparts.start(pair.counterparts.exact), torch.float64) as borrowed:
        theta = theta_of(reference.model, (), (), reference.loss.variables)
        parts, forward = parts_of_gradients(found.theta, theta, reference.loss), reference.at(torch.float64)
        runs, others = [], list(zip(entries, map(_shaped, entries, instead), strict=False))
        values = {entry.name: value for entry, value in others if entry.role is Role.OUTPUT and not entry.is_complex}
        for each in errors:
            tensors = list(zip(entries, map(_shaped, entries, each), strict=True))
            mode = PrecisionMode(torch.float64)
            mode.drawn_in = found.drawn_in
            of_outputs = {entry.name: error for entry, error in tensors if entry.role is Role.OUTPUT}
            of_inputs = {
                single.position_of(entry.parameter): error for entry, error in tensors if entry.role is Role.ARGUMENT
            }
            with InjectedErrors(single.reference, single.number, of_outputs, of_inputs, values):
                run = ran(forward, parts, borrowed, mode)
            runs.append(_with_own(run, found, single.name, dict(_named(tensors))))
    return runs


def _shaped(entry: ThetaEntry, error: Floats) -> torch.Tensor:
    numbers = torch.from_numpy(error).reshape((*entry.shape, 2) if entry.is_complex else entry.shape)
    return torch.view_as_complex(numbers) if entry.is_complex else numbers


def _named(tensors: Sequence[tuple[ThetaEntry, torch.Tensor]]) -> list[tuple[str, torch.Tensor]]:
    return [
        (name, error)
        for entry, error in tensors
        if entry.role is Role.PARAMETER
        for name in (entry.name, *entry.aliases)
    ]


def _with_own(run: Run, found: Candidate, module: str, errors: Mapping[str, torch.Tensor]) -> Run:
    """The run with the errors of the module's own parameters in their gradients."""
    entries = [found.theta[position] for position in found.theta.checked]
    gradients = []
    for entry, gradient in zip(entries, run.gradients, strict=True):
        names = [name.removeprefix(f"{module}.") for name in (entry.name, *entry.aliases)]
        error = next((errors[name] for name in names if name in errors and entry.role is Role.PARAMETER), None)
        gradients.append(gradient if gradient is None or error is None else gradient + error.to(gradient))
    return replace(run, gradients=gradients)
