"""What real backwards got wrong is told by its kind where the numbers prove it, and a near relation of it is not."""

from __future__ import annotations

import pytest

from tests.zoo.planted import Planted
from tests.zoo.real_mistakes import MISTAKES
from torch_gradcheck import Report, check_module

every_mistake = pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.id)


def check(mistake: Planted, wrong: bool) -> Report:
    problem = mistake.build(wrong)
    return check_module(problem.model, problem.loss_fn, problem.batch)


@pytest.mark.slow_but_for(20)
@every_mistake
def test_the_kind_is_told_under_exactly_its_names(mistake: Planted) -> None:
    report = check(mistake, wrong=True)
    told = {row.name: row.diagnosis.kind for row in report.mismatches if row.diagnosis is not None}
    expected = mistake.kinds if not isinstance(mistake.kinds, str) else dict.fromkeys(mistake.wrong, mistake.kinds)
    assert told == expected, str(report)
    assert report.culprit == mistake.culprit


@pytest.mark.slow_but_for(6)
@every_mistake
def test_the_right_twin_passes(mistake: Planted) -> None:
    report = check(mistake, wrong=False)
    assert report.passed, str(report)
    assert all(row.diagnosis is None for row in report)


def test_most_are_told() -> None:
    told = [mistake for mistake in MISTAKES if mistake.kinds != "unknown"]
    assert len(MISTAKES) >= 60
    assert len(told) >= 0.85 * len(MISTAKES)
