"""A hundred Functions, right and wrong: exactly the expected rows and entries of the contract are found wrong."""

from __future__ import annotations

import pytest

from tests.zoo.functions import FUNCTIONS, Case
from torch_gradcheck import Report, check_function
from torch_gradcheck.contract.entries import ENTRIES


def report_of(case: Case) -> Report:
    return check_function(case.function, case.inputs, **case.options)


@pytest.mark.slow_but_for(40)
@pytest.mark.parametrize("case", FUNCTIONS, ids=lambda case: case.id)
def test_exactly_what_is_wrong_is_found(case: Case) -> None:
    report = report_of(case)
    status = {row.name: row.status for row in report}
    entries = {entry.name: entry.status for entry in report.contract}
    proven = {name for name, word in status.items() if word in ("match", "kink")}
    assert {name for name, word in status.items() if word == "mismatch"} == set(case.wrong), report
    assert {name for name, word in entries.items() if word == "failed"} == set(case.failed), report
    assert {name: status[name] for name in case.rows} == dict(case.rows)
    assert {name: entries[name] for name in case.entries} == dict(case.entries), report
    assert proven == set(status) - set(case.wrong) - set(case.rows), report
    assert report.passed == case.is_right


def test_the_table_is_long_and_has_both_kinds() -> None:
    right = [case.id for case in FUNCTIONS if case.is_right]
    assert len(right) >= 30
    assert len(FUNCTIONS) - len(right) >= 30


def test_every_entry_fails_somewhere() -> None:
    assert {name for case in FUNCTIONS for name in case.failed} == set(ENTRIES)
