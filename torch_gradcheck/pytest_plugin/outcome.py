"""What a check in a test found, in a form that workers can send to the process that tells the user."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any

import pytest

import torch_gradcheck
from torch_gradcheck.reporting.printable import printable

ATTRIBUTE = "gradcheck"
"""Of a test report of pytest: the outcomes of the checks since the report before it, in JSON's types."""


NAMED = 3
"""Tensors in one line; the others are counted."""


@dataclass(frozen=True)
class Outcome:
    """What became of one check.

    Attributes:
        test: the id of the test.
        number: which of the test's checks it is, from 1 on.
        said: the outcome on one line, with the culprit and its place in the code.
        passed: whether the test went on behind it.
        proven, not_proven, wrong: how many of the tensors that were checked are so.
        broken: how many entries of a function's contract have failed.
        is_report: whether the check came to a report; False where it ended with an exception.
        file: the name of its files, without their suffix; "" where none were written.
        shorter: what is wrong and the culprit in fewer and fewer words, for where `said` has no room.
        fewest: the fewest of these words that still say both; "" where nothing has to be said.
    """

    test: str
    number: int
    said: str
    passed: bool
    proven: int = 0
    not_proven: int = 0
    wrong: int = 0
    broken: int = 0
    is_report: bool = True
    file: str = ""
    shorter: tuple[str, ...] = ()
    fewest: str = ""

    def within(self, columns: int) -> str:
        """What it says in so many columns: `said`, or the longest of `shorter` that fits; `said` where none does."""
        return next((words for words in (self.said, *self.shorter) if len(words) <= columns), self.said)

    def has_room(self, columns: int) -> bool:
        """Whether so many columns say what is wrong and the culprit."""
        return len(self.fewest) <= columns


def outcome_of(report: torch_gradcheck.Report, test: str, number: int, passed: bool, file: str) -> Outcome:
    """The outcome of a check that came to a report. What is frozen was not checked."""
    checked = [row for row in report if row.status.is_checked]
    wrong, proven = len(report.mismatches), sum(row.status.is_proven for row in checked)
    place, unproven = f", {printable(report.place)}" if report.place else "", [] if passed else _unproven(report)
    culprit = report.one_line.removeprefix(report.headline)
    return Outcome(
        test=test,
        number=number,
        said="; ".join([report.one_line + place, *unproven]),
        passed=passed,
        proven=proven,
        not_proven=len(checked) - wrong - proven,
        wrong=wrong,
        broken=len(report.broken),
        file=file,
        shorter=(*shorter_forms(report.headline, culprit, place), *unproven),
        fewest="" if passed else "".join(unproven) or beginning(report.headline) + culprit,
    )


def shorter_forms(headline: str, culprit: str, place: str) -> tuple[str, ...]:
    """The culprit behind the headline, behind what that begins with, and alone; each time with its line and without."""
    line = place.rpartition(" at ")[2]
    ends = (f"{culprit}, at {line}", culprit) if line else (culprit,)
    starts = (headline, beginning(headline), "") if culprit else ()
    return tuple((start + end).removeprefix("; ") for start in starts for end in ends)


def beginning(headline: str) -> str:
    """What a headline begins with that says what is wrong, without figures; all of it where that stands further on."""
    words = re.split(" in |, ", headline)[0]
    return words if "WRONG" in words or "NOT ONE" in words else headline


def _unproven(report: torch_gradcheck.Report) -> list[str]:
    """What was not proven, where a test fails for nothing else: it is strict."""
    names = [printable(row.name) for row in report if row.status.is_checked and not row.status.is_proven]
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return [f"not proven: {', '.join(names[:NAMED])}{more}"] if report.passed else []


def named(outcome: Outcome) -> str:
    """The test and, where it has several, which of its checks this is."""
    return outcome.test if outcome.number == 1 else f"{outcome.test}, check {outcome.number}"


def attach(outcomes: list[Outcome], report: pytest.TestReport) -> None:
    """Has a test report of pytest carry outcomes, from process to process too, and takes them off the list."""
    if outcomes:
        setattr(report, ATTRIBUTE, [asdict(outcome) for outcome in outcomes])
        outcomes.clear()


def attached(report: pytest.TestReport) -> list[Outcome]:
    """The outcomes that a test report carries."""
    found: list[dict[str, Any]] = getattr(report, ATTRIBUTE, [])
    return [Outcome(**outcome | {"shorter": tuple(outcome["shorter"])}) for outcome in found]
