"""Where equal runs of a candidate begin to differ: the module or Function, forward or backward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from torch_gradcheck.against_reference.equal_runs import Apart, notes_on, spread_of, told_of
from torch_gradcheck.against_reference.pair import Pair
from torch_gradcheck.against_reference.runs.callers_autocast import CallersAutocast
from torch_gradcheck.against_reference.runs.computation import Computation
from torch_gradcheck.against_reference.runs.run import ran
from torch_gradcheck.against_reference.runs.sides import lent
from torch_gradcheck.borrowing.loan import Start
from torch_gradcheck.contract.comparison import distance, largest
from torch_gradcheck.diagnosis.culprit.sentences import described
from torch_gradcheck.diagnosis.unrepeatable import start_in_words
from torch_gradcheck.gradients.backward_record import BackwardRecord, start_of_difference
from torch_gradcheck.objective.module_hooks import forward_hooks
from torch_gradcheck.objective.theta import theta_of
from torch_gradcheck.reporting.facts import Role
from torch_gradcheck.reporting.report import Report
from torch_gradcheck.torch_internals.modules import module_at

RUNS = 5
"""At most so many runs are recorded until two of them differ."""

BESIDE_ROUNDING = 0.1
"""What differs by a tenth of what rounding may do to the tensor that is told of does more than round."""

Outputs = list[tuple[str, list[torch.Tensor]]]


@dataclass(frozen=True)
class _Recorded:
    """One run: the outputs of all modules in the order in which their calls ended, and the backward node by node."""

    outputs: Outputs
    backward: BackwardRecord


def beside_equal_runs(report: Report, pair: Pair, apart: Sequence[Apart]) -> Report:
    """The report on a candidate with what there is to tell of its equal runs: where they differ, and by how much."""
    worst = told_of(apart)
    culprit, where = (None, "") if worst is None else start_of(pair, worst)
    notes = notes_on(apart, where)
    if worst is None:
        return replace(report, notes=[*report.notes, *notes])
    return replace(report, culprit=culprit, place="", notes=[*notes, *report.notes], backward_spread=spread_of(apart))


def start_of(pair: Pair, apart: Apart) -> tuple[str | None, str]:
    """The culprit's name and a sentence on where runs begin to differ; None and "" where the recorded ones do not.

    Args:
        pair: of the candidate.
        apart: the tensor that is told of.
    """
    computation, request, level = pair.candidate, pair.request, BESIDE_ROUNDING * apart.allowed
    autocast = CallersAutocast()
    with lent(computation, request, Start(values=pair.counterparts.moved)) as borrowed:
        theta = theta_of(computation.model, request.include, request.exclude, computation.loss.variables)
        leaves = [[theta[position].parameter] for position in theta.checked]
        runs: list[_Recorded] = []
        while len(runs) < RUNS:
            outputs: Outputs = []
            record = BackwardRecord(computation.model)
            with forward_hooks(computation.model, lambda name, tensors: _note(outputs, name, tensors)), record:  # noqa: B023
                ran(autocast.over(computation.at(None)), leaves, borrowed)
            runs.append(_Recorded(outputs, record))
            found = _first_difference(computation, runs, apart, level) if len(runs) > 1 else None
            if found is not None:
                return found
    return None, ""


def _note(outputs: Outputs, name: str, tensors: Sequence[torch.Tensor]) -> None:
    outputs.append((name, [tensor.detach().clone() for tensor in tensors]))


def _first_difference(
    computation: Computation, runs: Sequence[_Recorded], apart: Apart, level: float
) -> tuple[str | None, str] | None:
    """What the last run shows beside the first; None for no difference."""
    one, other, words = runs[0], runs[-1], computation.loss.words
    for (name, tensors), (_, twins) in zip(one.outputs, other.outputs, strict=False):
        if any(distance(*pair) > level * largest(pair[0]) for pair in zip(tensors, twins, strict=False)):
            kind = type(module_at(computation.model, name)).__name__
            return name, f"It starts in the forward of {described(name, kind, words)}"
    if apart.entry.role is Role.OUTPUT:
        return words.culprit, f"It starts in the forward of {words.described}"
    event = start_of_difference(one.backward, other.backward, level)
    if event is None:
        return None
    place = one.backward.place(event.node)
    return start_in_words(place, not event.leaves, apart.entry, computation.model, words)
