"""What became of a row: wrong is never hidden behind another status, and noise is no change."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import pytest

from tests.reporting.made_up import whole
from tests.reporting.render.samples import INF, NAN, facts, match, row, wrong
from torch_gradcheck.reporting.comparison.comparison import Comparison
from torch_gradcheck.reporting.facts import ParameterReport, Role, Status

NOT_PROVEN = (Status.FLAT, Status.UNUSED, Status.UNDECIDED, Status.FROZEN)
PROVEN = (Status.MATCH, Status.KINK)
LISTS = ("became_wrong", "became_right", "worse", "better", "changed", "only_old", "only_new")


def compared(new: ParameterReport | None, old: ParameterReport | None) -> Comparison:
    after, before = (whole(facts(*([each] if each else []))) for each in (new, old))
    return after.compare(before)


def lists_of(comparison: Comparison) -> dict[str, list[str]]:
    """The lists that name something."""
    return {name: names for name in LISTS if (names := getattr(comparison, name))}


def expected(was: Status, is_now: Status) -> str | None:
    """The list that a row of another status belongs in; None where it is as before."""
    if was is is_now:
        return None
    if is_now is Status.MISMATCH:
        return "became_wrong"
    if was is Status.MISMATCH:
        return "became_right" if is_now in PROVEN else "changed"
    if (was in PROVEN) is (is_now in PROVEN):
        return "changed"
    return "better" if is_now in PROVEN else "worse"


@pytest.mark.parametrize(("was", "is_now"), list(product(Status, Status)), ids=str)
def test_another_status(was: Status, is_now: Status) -> None:
    found = compared(row("a", 3, status=is_now), row("a", 3, status=was))
    where = expected(was, is_now)
    assert lists_of(found) == ({} if where is None else {where: ["a"]})
    assert found.regressed is (where == "became_wrong")
    assert bool(found) is not found.regressed


ERRORS: dict[str, tuple[dict[str, float], dict[str, float], str | None]] = {
    "within the bars": ({"relative_error": 1e-9}, {"relative_error": 9e-7, "max_abs_error": 4e-10}, None),
    "beyond the bars": ({"relative_error": 1e-9}, {"relative_error": 9e-7, "max_abs_error": 1e-8}, "worse"),
    "less than twice": (
        {"relative_error": 1e-7, "max_abs_error": 1e-3},
        {"relative_error": 1.9e-7, "max_abs_error": 2e-3},
        None,
    ),
    "unknown bar": ({"relative_error": 1e-9}, {"relative_error": 9e-7, "max_abs_error": 1e-8, "noise": NAN}, None),
    "within the ratio's bars": (
        {"relative_error": 1e-9, "relative_noise": 1e-8},
        {"relative_error": 9e-9, "relative_noise": 1e-8, "max_abs_error": 1e-8},
        None,
    ),
    "beyond the ratio's bars": (
        {"relative_error": 1e-9, "relative_noise": 1e-8},
        {"relative_error": 9e-8, "relative_noise": 1e-8},
        "worse",
    ),
    "infinite bar": (
        {"relative_error": 1e-9, "relative_noise": INF, "noise": INF},
        {"relative_error": 9e-8, "relative_noise": 1e-8, "max_abs_error": 1e-8},
        None,
    ),
    "shrunk": ({"relative_error": 9e-7, "max_abs_error": 1e-8}, {"relative_error": 1e-9}, "better"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_an_error_that_noise_does_not_explain(case: str) -> None:
    before, after, where = ERRORS[case]
    start: Any = {"max_abs_error": 3e-10, "noise": 1e-10}
    found = compared(match("a", 3), match("a", 3))
    assert lists_of(found) == {}
    new, old = (row("a", 3, **{**start, **figures}) for figures in (after, before))
    assert lists_of(compared(new, old)) == ({} if where is None else {where: ["a"]})


@pytest.mark.parametrize(
    ("old", "new", "where"),
    [(0.1, 0.9, "worse"), (0.9, 0.1, "better"), (0.3, 0.31, None), (0.3, NAN, "worse"), (NAN, NAN, None)],
    ids=["larger", "smaller", "alike", "NaN now", "NaN still"],
)
def test_a_wrong_row_that_is_still_wrong(old: float, new: float, where: str | None) -> None:
    after, before = (
        wrong("a", 3, relative_error=ratio, max_abs_error=INF if ratio != ratio else ratio) for ratio in (new, old)
    )
    found = compared(after, before)
    assert lists_of(found) == ({} if where is None else {where: ["a"]})
    assert not found.regressed


def test_a_row_that_is_gone_and_one_that_is_new() -> None:
    assert lists_of(compared(None, match("a", 3))) == {"only_old": ["a"]}
    assert compared(None, match("a", 3)).regressed
    assert lists_of(compared(match("a", 3), None)) == {"only_new": ["a"]}
    assert not compared(match("a", 3), None).regressed


def test_a_new_row_that_is_wrong_became_wrong() -> None:
    found = compared(wrong("a", 3), None)
    assert lists_of(found) == {"became_wrong": ["a"], "only_new": ["a"]}
    assert found.regressed


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (match("head", 3, aliases=("embed",)), match("embed", 3)),
        (match("embed", 3), match("head", 3, aliases=("embed",))),
        (match("a", 3, aliases=("shared",)), match("b", 3, aliases=("shared",))),
    ],
    ids=["alias then", "alias now", "alias of both"],
)
def test_a_row_that_was_renamed_to_its_alias_is_the_same_row(old: ParameterReport, new: ParameterReport) -> None:
    found = compared(new, old)
    assert lists_of(found) == {}
    assert found.rows[0].name == new.name


def test_names_go_before_aliases() -> None:
    """Untied parameters: the head has its own row now, and the embedding is what it was."""
    old = whole(facts(match("embed", 3, aliases=("head",))))
    new = whole(facts(wrong("head", 3), match("embed", 3)))
    assert lists_of(new.compare(old)) == {"became_wrong": ["head"], "only_new": ["head"]}


def test_an_output_is_no_gradient_of_that_name() -> None:
    old, new = match("output", 3, role=Role.OUTPUT), match("output", 3, role=Role.ARGUMENT)
    assert lists_of(compared(new, old)) == {"only_old": ["output"], "only_new": ["output"]}


def test_another_shape_is_a_change() -> None:
    assert lists_of(compared(match("a", 4, 2), match("a", 4))) == {"changed": ["a"]}


def test_rows_are_in_the_order_of_the_new_report_and_then_those_that_are_gone() -> None:
    old = whole(facts(*[match(name, 2) for name in "cab"]))
    new = whole(facts(*[match(name, 2) for name in "bdc"]))
    assert [each.name for each in new.compare(old).rows] == ["b", "d", "c", "a"]
    assert repr(new.compare(old).rows[1]) == "<ComparedRow d: new>"


def test_seconds_are_no_change() -> None:
    old = match("a", 3)
    assert compared(replace(old, seconds=9.0, evaluations=7), old).is_unchanged
