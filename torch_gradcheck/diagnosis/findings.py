"""The findings of a failed check: a diagnosis for each wrong row, the culprit, and mistakes that rows share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from torch_gradcheck.diagnosis.culprit.attribution import Culprit
from torch_gradcheck.diagnosis.culprit.compiled import on_masked
from torch_gradcheck.diagnosis.culprit.of_slope import before_the_double_backward
from torch_gradcheck.diagnosis.culprit.search import find_culprit
from torch_gradcheck.diagnosis.kind.diagnose import diagnose_all
from torch_gradcheck.diagnosis.kind.evidence import Evidence
from torch_gradcheck.diagnosis.kind.factors import factor_in_words
from torch_gradcheck.diagnosis.kind.terms import slicewise
from torch_gradcheck.diagnosis.kind.wrong_map import wrong_map
from torch_gradcheck.diagnosis.non_finite.search import NonFinite, find_non_finite
from torch_gradcheck.diagnosis.propagated import propagated
from torch_gradcheck.diagnosis.stale_calls import stale_calls
from torch_gradcheck.diagnosis.stop_gradients import stop_gradients
from torch_gradcheck.diagnosis.sums import wrong_sums
from torch_gradcheck.gradients.analytic import AnalyticGradient
from torch_gradcheck.methods.problem import Problem
from torch_gradcheck.objective.theta import ThetaEntry, flat_values
from torch_gradcheck.reporting.facts import Diagnosis, DiagnosisKind, ParameterReport, Role, Status
from torch_gradcheck.reporting.facts.diagnosis import OF_PART
from torch_gradcheck.reporting.words import counted, listed
from torch_gradcheck.verdicts.entry_check import Outcome
from torch_gradcheck.verdicts.trial import ParameterTrial


@dataclass(frozen=True)
class Findings:
    """The findings of a check.

    Attributes:
        rows: one a parameter, the wrong ones with a diagnosis and a map of their wrong entries.
        culprit: the name of the module that goes wrong, see `Culprit.name`; None where none can be named.
        notes: sentences on the culprit, and on mistakes that several rows share.
        place: where in the code the mistake of the culprit is, see `Facts.place`.
    """

    rows: list[ParameterReport]
    culprit: str | None
    notes: list[str]
    place: str = ""


def findings_of(
    problem: Problem,
    rows: list[ParameterReport],
    trials: Mapping[int, ParameterTrial],
    gradients: Mapping[int, AnalyticGradient],
) -> Findings:
    """Diagnoses every wrong row and searches the culprit; costs nothing where none is wrong and all is finite.

    Args:
        problem: J, θ and the options, the model lent.
        rows: one a parameter, in the order of θ.
        trials: the trial of every checked parameter, by position.
        gradients: the gradients on trial, by position.
    """
    finite = all(np.isfinite(trial.analytic).all() for trial in trials.values())
    if finite and not [row for row in rows if row.status is Status.MISMATCH]:
        return Findings(rows, None, on_masked(problem, rows, trials))
    problem.progress.at("what is wrong, and where")
    problem.give_back_freed_memory()
    wrong = {position for position in trials if rows[position].status is Status.MISMATCH}
    stops = stop_gradients(problem, {position: trials[position] for position in sorted(wrong)})
    culprit = _culprit(problem, trials, gradients, finite)
    evidences = Evidences(problem, trials)
    diagnoses = diagnose_all(evidences, culprit.meanings, culprit.rounding)
    diagnoses |= stops.diagnoses(rows, _unknown(diagnoses))
    spurious = () if stops.right else (DiagnosisKind.SPURIOUS,)  # where a path is lost on purpose, that says more
    proven = propagated(problem, culprit, evidences, _without_cause(diagnoses, *spurious))
    diagnoses |= {k: _told_by_both(diagnoses[k], found) for k, found in proven.items()}
    diagnoses |= stale_calls(problem, culprit.suspects, evidences, _unknown(diagnoses))
    diagnoses |= wrong_sums(problem, culprit.suspects, evidences, _unknown(diagnoses))
    diagnoses |= {k: found for k in _unknown(diagnoses) if (found := slicewise(evidences[k])) is not None}
    diagnosed = [
        replace(row, diagnosis=diagnoses.get(k), map=wrong_map(evidences[k])) if k in wrong else row
        for k, row in enumerate(rows)
    ]
    on_culprit = [note + stops.cut_in_words * (not k) for k, note in enumerate(culprit.notes)]
    notes = [*stops.notes, *on_culprit, *on_masked(problem, rows, trials), *_in_common(diagnosed, culprit)]
    return Findings(diagnosed, culprit.name, notes, culprit.place and (stops.place or culprit.place))


def _unknown(diagnoses: Mapping[int, Diagnosis]) -> list[int]:
    """The positions of the parameters whose mistake is not known."""
    return [position for position, diagnosis in diagnoses.items() if not diagnosis.kind.is_known]


def _told_by_both(seen: Diagnosis, proven: Diagnosis) -> Diagnosis:
    """What is seen of a parameter, and what is proven of a call that spoils it: places, or the mistake, or both."""
    if seen.kind.is_known and not proven.kind.is_told:
        return seen
    if seen.kind.is_known and proven.kind is DiagnosisKind.PROPAGATED and proven.message.startswith(OF_PART):
        return replace(seen, message=f"{seen.message}: {proven.message}")  # nothing reached it: the mistake is its own
    return proven


def _without_cause(diagnoses: Mapping[int, Diagnosis], *kinds: DiagnosisKind) -> list[int]:
    """The same, those of which only the place is known, and those of these kinds: what is wrong may be further down."""
    return [k for k, diagnosis in diagnoses.items() if not diagnosis.kind.is_told or diagnosis.kind in kinds]


def _culprit(
    problem: Problem, trials: Mapping[int, ParameterTrial], gradients: Mapping[int, AnalyticGradient], finite: bool
) -> Culprit:
    """The culprit; of what is not finite the operation that makes it, if it is found, and the culprit of the rest."""
    before = None if problem.slope is None else before_the_double_backward(problem, problem.slope)
    if before is not None:
        return before
    made = None if finite else find_non_finite(problem)
    followed = {position: _by_coordinates(trial) for position, trial in trials.items()}
    if made is not None:
        followed = {position: _finite_only(trial) for position, trial in followed.items()}
    wrong = any(np.any(trial.results.outcome == Outcome.MISMATCH) for trial in followed.values())
    culprit = find_culprit(problem, followed, gradients) if wrong else Culprit(None, ())
    return culprit if made is None else _made_by(made, culprit)


def _made_by(made: NonFinite, culprit: Culprit) -> Culprit:
    """What makes gradients not finite as the culprit, and what is said of the other one."""
    return replace(culprit, name=made.culprit, notes=(*made.notes, *culprit.notes), place=made.place)


def _finite_only(trial: ParameterTrial) -> ParameterTrial:
    """The trial with nothing said of the entries of the gradient that are not finite."""
    outcome = np.where(np.isfinite(trial.analytic), trial.results.outcome, Outcome.UNDECIDED)
    return replace(trial, results=replace(trial.results, outcome=outcome.astype(trial.results.outcome.dtype)))


def _by_coordinates(trial: ParameterTrial) -> ParameterTrial:
    """The trial with what differences along single coordinates give of entries that are wrong by a joint direction.

    So much is to be found in the modules, which are differenced along one coordinate. At a kink it is the middle of two
    slopes; an entry that has just that is not followed.
    """
    if not trial.jointly:
        return trial
    results = trial.results
    middle = (results.left + results.right) / 2
    off = np.abs(trial.analytic - middle) > np.abs(results.right - results.left) / 4
    wrong = results.outcome == Outcome.MISMATCH
    outcome = np.where(wrong & ~off, Outcome.KINK, results.outcome).astype(results.outcome.dtype)
    numeric = np.where(wrong & off, middle, results.numeric)
    return replace(trial, results=replace(results, numeric=numeric, outcome=outcome))


class Evidences(Mapping[int, Evidence]):
    """The trials of parameters as evidence, by position in θ; made when it is asked for, and not kept.

    Args:
        problem: J, θ and the options.
        trials: by position.
    """

    def __init__(self, problem: Problem, trials: Mapping[int, ParameterTrial]) -> None:
        self._problem, self._trials = problem, trials

    def __getitem__(self, position: int) -> Evidence:
        return evidence_of(self._problem.theta[position], self._trials[position], self._problem.request.tolerance)

    def __iter__(self) -> Iterator[int]:
        return iter(self._trials)

    def __len__(self) -> int:
        return len(self._trials)


def evidence_of(entry: ThetaEntry, trial: ParameterTrial, tolerance: float) -> Evidence:
    """The trial of one parameter as evidence; coordinates not tried, at kinks or undecided are not judged."""
    tried = None if len(trial.coordinates) == entry.coordinates else trial.coordinates

    def whole(values: NDArray[Any], missing: float) -> NDArray[Any]:
        if tried is None:
            return values
        full = np.full(entry.coordinates, missing, dtype=values.dtype)
        full[tried] = values
        return full

    outcome, error_bar = whole(trial.results.outcome, Outcome.UNDECIDED), whole(trial.results.error_bar, np.inf)
    return Evidence(
        analytic=whole(trial.analytic, 0.0),
        numeric=whole(trial.results.numeric, np.nan),
        error_bar=np.where(np.isnan(error_bar), np.inf, error_bar) if np.isnan(error_bar).any() else error_bar,
        wrong=outcome == Outcome.MISMATCH,
        judged=(outcome == Outcome.MISMATCH) | (outcome == Outcome.MATCH),
        theta=flat_values(entry),
        shape=(*entry.shape, 2) if entry.is_complex else entry.shape,
        has_complex_axis=entry.is_complex,
        has_channels=entry.role is Role.PARAMETER,
        reached=trial.reached,
        tolerance=tolerance,
    )


def _in_common(rows: Sequence[ParameterReport], culprit: Culprit) -> list[str]:
    """One sentence for each kind of mistake that several parameters share."""
    groups: dict[tuple[DiagnosisKind, str, str], list[ParameterReport]] = {}
    for row in rows:
        if row.diagnosis is not None and row.diagnosis.kind.is_told_together:
            mistake = row.diagnosis.kind, _factor(row.diagnosis), row.diagnosis.made_in_a_call
            groups.setdefault(mistake, []).append(row)
    return [
        f"the same mistake in {_in_all(group, culprit)}: {_in_words(kind)}{factor}"
        for (kind, factor, _), group in groups.items()
        if len(group) > 1
    ]


def _in_all(rows: Sequence[ParameterReport], culprit: Culprit) -> str:
    """Several rows counted and named, as in "2 parameters upstream of act (fc.weight, fc.bias)"."""
    return f"{counted([row.role for row in rows])}{_upstream(rows, culprit)} ({listed([row.name for row in rows])})"


def _upstream(rows: Sequence[ParameterReport], culprit: Culprit) -> str:
    """The words " upstream of <culprit>" if the modules of all these parameters are called before it; else "".

    Where other modules are wrong as well, the mistake may be theirs.
    """
    if {suspect.name for suspect in culprit.suspects} - {culprit.name}:
        return ""
    position = {module: k for k, module in enumerate(culprit.order)}
    end = position.get(culprit.name or "")
    modules = [row.name.rpartition(".")[0] for row in rows if row.role is Role.PARAMETER]
    if not end or any(position.get(module, end) >= end for module in modules):
        return ""
    return f" upstream of {culprit.name}"


def _in_words(kind: DiagnosisKind) -> str:
    return kind.value.replace("_", " ")


def _factor(diagnosis: Diagnosis) -> str:
    if diagnosis.factor is None or diagnosis.kind is DiagnosisKind.SIGN_FLIPPED:
        return ""
    return f" by the same factor {factor_in_words(diagnosis.factor)}"
