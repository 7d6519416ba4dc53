"""Promise: every planted wrong gradient is found, and exactly the names it spoils are flagged."""

from __future__ import annotations

import pytest

from torch_gradcheck import Report, check_module
from torch_gradcheck.facts import DiagnosisKind
from zoo.planted import PLANTED, Planted, Problem, truly_wrong

KINDS = {str(kind) for kind in DiagnosisKind}
every_bug = pytest.mark.parametrize("bug", PLANTED, ids=lambda bug: bug.id)


def check(problem: Problem, mode: str) -> Report:
    return check_module(problem.model, problem.loss_fn, problem.batch, gradients=problem.gradients, mode=mode)


@every_bug
def test_the_table_tells_the_truth(bug: Planted) -> None:
    assert truly_wrong(bug) == set(bug.wrong)


@every_bug
def test_the_bug_is_found_under_exactly_its_names(bug: Planted) -> None:
    report = check(bug.build(True), bug.mode)
    assert {row.name for row in report.mismatches} == set(bug.wrong), str(report)
    assert report.passed is False


@every_bug
def test_the_correct_twin_passes(bug: Planted) -> None:
    report = check(bug.build(False), bug.mode)
    assert report.passed is True, str(report)
    assert {row.status for row in report} <= {"match", "flat"}, str(report)


def test_the_table_is_large_and_consistent() -> None:
    assert len(PLANTED) >= 60
    assert len({bug.id for bug in PLANTED}) == len(PLANTED)
    for bug in PLANTED:
        kinds = {bug.kinds} if isinstance(bug.kinds, str) else set(bug.kinds.values())
        assert kinds <= KINDS, bug.id
        assert isinstance(bug.kinds, str) or set(bug.kinds) == set(bug.wrong), bug.id
