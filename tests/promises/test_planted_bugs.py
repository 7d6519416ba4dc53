"""Promise: every planted wrong gradient is found, under exactly the names it spoils, and its kind and place are right.

The exact method looks for one half of them here, the projected method for the other in test_projected.py; before a
release each looks for all. A kind or a culprit that cannot be told is `unknown` or None; in 95 % of the cases it is
told.
"""

from __future__ import annotations

from functools import cache

import pytest

from tests.zoo.planted import PLANTED, Planted, Problem, truly_wrong
from tests.zoo.sweeps import some_of
from torch_gradcheck import Report, check_module
from torch_gradcheck.reporting.facts import DiagnosisKind

KINDS = {str(kind) for kind in DiagnosisKind}
every_bug = pytest.mark.parametrize("bug", PLANTED, ids=lambda bug: bug.id)
half_of_the_bugs = pytest.mark.parametrize("bug", some_of(PLANTED, 2, first=1), ids=lambda bug: bug.id)


def check(problem: Problem, mode: str) -> Report:
    return check_module(problem.model, problem.loss_fn, problem.batch, gradients=problem.gradients, mode=mode)


@cache
def report_on(number: int) -> Report:
    bug = PLANTED[number]
    return check(bug.build(True), bug.mode)


def found(bug: Planted) -> Report:
    return report_on(PLANTED.index(bug))


@pytest.mark.slow_but_for(10)
@every_bug
def test_the_table_tells_the_truth(bug: Planted) -> None:
    assert truly_wrong(bug) == set(bug.wrong)


@pytest.mark.slow_but_for(2)
@half_of_the_bugs
def test_the_bug_is_found_under_exactly_its_names(bug: Planted) -> None:
    report = found(bug)
    assert {row.name for row in report.mismatches} == set(bug.wrong), str(report)
    assert report.passed is False


@pytest.mark.slow_but_for(4)
@half_of_the_bugs
def test_the_kind_is_right_or_unknown(bug: Planted) -> None:
    for row in found(bug).mismatches:
        assert row.diagnosis is not None
        assert row.diagnosis.kind in (bug.kind_of(row.name), "unknown"), row
        assert row.diagnosis.message
    assert all(row.diagnosis is None and row.map is None for row in found(bug) if row.status != "mismatch")


@pytest.mark.slow_but_for(4)
@half_of_the_bugs
def test_the_culprit_is_right_or_none_with_a_reason(bug: Planted) -> None:
    report = found(bug)
    assert report.culprit in (bug.culprit, None), str(report)
    if report.culprit is None:
        assert report.notes[0].startswith(("no culprit can be named: ", "autograd's own gradient is right: "))


@pytest.mark.slow
def test_kinds_and_culprits_are_told_in_95_percent() -> None:
    bugs = some_of(PLANTED, 2, first=1)
    kinds = [row.diagnosis.kind == bug.kind_of(row.name) for bug in bugs for row in found(bug).mismatches]
    culprits = [found(bug).culprit == bug.culprit for bug in bugs]
    assert sum(kinds) >= 0.95 * len(kinds)
    assert sum(culprits) >= 0.95 * len(culprits)


@pytest.mark.slow_but_for(10)
@half_of_the_bugs
def test_the_correct_twin_passes(bug: Planted) -> None:
    report = check(bug.build(False), bug.mode)
    assert report.passed is True, str(report)
    assert {row.status for row in report} <= {"match", "flat", "frozen"}, str(report)
    assert report.culprit is None
    assert not any("culprit" in note for note in report.notes)


def test_the_table_is_large_and_consistent() -> None:
    assert len(PLANTED) >= 130
    assert len({bug.id for bug in PLANTED}) == len(PLANTED)
    for bug in PLANTED:
        kinds = {bug.kinds} if isinstance(bug.kinds, str) else set(bug.kinds.values())
        assert kinds <= KINDS, bug.id
        assert isinstance(bug.kinds, str) or set(bug.kinds) == set(bug.wrong), bug.id
