"""What is wrong and where, for the rows of a report: diagnosis by diagnosis, culprit, and what both have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from torch_gradcheck.diagnosis.culprit.attribution import Blame
from torch_gradcheck.diagnosis.culprit.search import find_culprit
from torch_gradcheck.diagnosis.kind.diagnose import diagnose_all
from torch_gradcheck.diagnosis.kind.evidence import Evidence
from torch_gradcheck.diagnosis.kind.wrong_map import wrong_map
from torch_gradcheck.gradients.analytic import AnalyticGradient
from torch_gradcheck.methods.problem import Problem
from torch_gradcheck.objective.theta import ThetaEntry, flat_values
from torch_gradcheck.reporting.facts import Diagnosis, DiagnosisKind, ParameterReport, Status
from torch_gradcheck.verdicts.entry_check import Outcome
from torch_gradcheck.verdicts.trial import ParameterTrial

NAMED = 3
"""How many parameters are named where one mistake shows in many."""


@dataclass(frozen=True)
class Findings:
    """The rows with their diagnoses, the culprit, and sentences on both."""

    rows: list[ParameterReport]
    culprit: str | None
    notes: list[str]


def findings_of(
    problem: Problem,
    rows: list[ParameterReport],
    trials: Mapping[int, ParameterTrial],
    gradients: Mapping[int, AnalyticGradient],
) -> Findings:
    """Looks for the mistake, if there is one; costs nothing where all passes.

    Args:
        problem: J, θ and the options, the model lent.
        rows: one a parameter, in the order of θ.
        trials: every parameter tried, by position.
        gradients: those on trial, by position.
    """
    if not any(row.status is Status.MISMATCH for row in rows):
        return Findings(rows, None, [])
    blame = find_culprit(problem, trials, gradients)
    evidences = {
        position: evidence_of(problem.theta[position], trial, problem.request.tolerance)
        for position, trial in trials.items()
    }
    wrong = {position for position in trials if rows[position].status is Status.MISMATCH}
    diagnoses = diagnose_all(evidences, blame.meanings, blame.rounding)
    told = [
        replace(row, diagnosis=diagnoses.get(k), map=wrong_map(evidences[k])) if k in wrong else row
        for k, row in enumerate(rows)
    ]
    return Findings(told, blame.culprit, [*blame.notes, *_in_common(told, blame)])


def evidence_of(entry: ThetaEntry, trial: ParameterTrial, tolerance: float) -> Evidence:
    """The trial of one parameter as evidence; coordinates not tried, at kinks or undecided count for nothing."""

    def whole(
        values: np.ndarray[tuple[int, ...], np.dtype[np.float64]],
    ) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        full = np.full(entry.coordinates, np.nan)
        full[trial.coordinates] = values
        return full

    outcome = whole(trial.results.outcome.astype(np.float64))
    return Evidence(
        analytic=np.where(np.isnan(outcome), 0.0, whole(trial.analytic)),
        numeric=whole(trial.results.numeric),
        error_bar=np.nan_to_num(whole(trial.results.error_bar), nan=np.inf),
        wrong=outcome == Outcome.MISMATCH,
        judged=(outcome == Outcome.MISMATCH) | (outcome == Outcome.MATCH),
        theta=flat_values(entry),
        shape=(*entry.shape, 2) if entry.is_complex else entry.shape,
        has_complex_axis=entry.is_complex,
        reached=trial.reached,
        tolerance=tolerance,
    )


def _in_common(rows: Sequence[ParameterReport], blame: Blame) -> list[str]:
    """A sentence on each mistake that shows in several parameters."""
    groups: dict[tuple[DiagnosisKind, str], list[str]] = {}
    for row in rows:
        if row.diagnosis is not None and row.diagnosis.kind.is_told_together:
            groups.setdefault((row.diagnosis.kind, _factor(row.diagnosis)), []).append(row.name)
    return [
        f"one mistake in {len(names)} parameters{_upstream(names, blame)}, {_listed(names)}: {_in_words(kind)}{factor}"
        for (kind, factor), names in groups.items()
        if len(names) > 1
    ]


def _upstream(names: Sequence[str], blame: Blame) -> str:
    """That all of them are used before the culprit is, if they are."""
    position = {module: k for k, module in enumerate(blame.order)}
    culprit = position.get(blame.culprit or "")
    modules = [name.rpartition(".")[0] for name in names]
    if not culprit or any(position.get(module, culprit) >= culprit for module in modules):
        return ""
    return f" upstream of {blame.culprit}"


def _in_words(kind: DiagnosisKind) -> str:
    return kind.value.replace("_", " ")


def _factor(diagnosis: Diagnosis) -> str:
    return "" if diagnosis.factor is None else f" by the same factor {diagnosis.factor:.4g}"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
