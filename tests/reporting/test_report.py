from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from dataclasses import FrozenInstanceError, replace
from typing import Any

import numpy as np
import pytest

from tests.reporting.render.samples import SAMPLES, contract, facts, match, report_of, row, unmeasured
from torch_gradcheck.errors import GradcheckError, GradientMismatchError, NothingProvenError
from torch_gradcheck.reporting.facts import Status
from torch_gradcheck.reporting.render.html import html
from torch_gradcheck.reporting.render.text import text
from torch_gradcheck.reporting.report import Report


def report(sample: str) -> Report:
    return report_of(SAMPLES[sample])


@pytest.mark.parametrize(
    ("sample", "passed", "proven"),
    [
        ("all_right", True, True),
        ("nothing_wrong_not_all_proven", True, False),
        ("nothing_proven", False, False),
        ("two_of_twelve_wrong", False, False),
        ("no_parameters", False, False),
        ("kept_contract", True, True),
        ("broken_contract", False, False),
    ],
)
def test_green_means_that_something_was_proven(sample: str, passed: bool, proven: bool) -> None:
    found = report(sample)
    assert (found.passed, bool(found), found.proven) == (passed, passed, proven)


@pytest.mark.parametrize(
    ("status", "passed", "proven"),
    [
        (Status.MATCH, True, True),
        (Status.KINK, True, True),
        (Status.FROZEN, True, True),
        (Status.FLAT, True, False),
        (Status.UNUSED, True, False),
        (Status.UNDECIDED, True, False),
        (Status.MISMATCH, False, False),
    ],
    ids=str,
)
def test_beside_a_match_each_status_says_whether_all_is_proven(status: Status, passed: bool, proven: bool) -> None:
    found = facts(match("a", 3), row("b", 3, status=status))
    assert (found.passed, found.proven) == (passed, proven)


@pytest.mark.parametrize("status", [status for status in Status if status not in (Status.MATCH, Status.KINK)])
def test_nothing_but_a_match_or_a_kink_passes(status: Status) -> None:
    assert not facts(row("b", 3, status=status))


@pytest.mark.parametrize("sample", ["all_right", "nothing_wrong_not_all_proven"])
def test_a_report_that_passed_does_not_raise(sample: str) -> None:
    report(sample).raise_if_failed()


@pytest.mark.parametrize(
    ("sample", "strict"),
    [("nothing_proven", False), ("nothing_proven", True), ("nothing_wrong_not_all_proven", True)],
    ids=["nothing", "nothing, strict", "not all, strict"],
)
@pytest.mark.parametrize("kind", [GradcheckError, AssertionError], ids=["of the package", "of assert"])
def test_what_proves_nothing_raises_the_table(kind: type[Exception], sample: str, strict: bool) -> None:
    found = report(sample)
    with pytest.raises(kind) as caught:
        found.raise_if_failed(strict=strict)
    assert type(caught.value) is NothingProvenError
    assert str(caught.value) == str(found)


def test_strict_does_not_raise_where_all_is_proven() -> None:
    report("all_right").raise_if_failed(strict=True)


def test_a_backward_that_is_not_one_function_does_not_pass() -> None:
    found = replace(report("all_right"), backward_spread=0.5)
    assert report("all_right").passed
    assert not found.passed
    assert not found.mismatches
    assert str(found).startswith("the backward is NOT ONE FUNCTION, 12 of 12 parameters right")


@pytest.mark.parametrize("kind", [GradcheckError, AssertionError], ids=["of the package", "of assert"])
def test_a_mismatch_raises_the_table(kind: type[Exception]) -> None:
    failed = report("two_of_twelve_wrong")
    with pytest.raises(kind, match=r"✗ mismatch norm1\.weight") as caught:
        failed.raise_if_failed()
    assert type(caught.value) is GradientMismatchError
    assert str(caught.value) == str(failed)


@pytest.mark.parametrize("strict", [False, True], ids=["", "strict"])
def test_a_broken_contract_raises_the_table(strict: bool) -> None:
    failed = report("broken_contract")
    with pytest.raises(AssertionError, match="✗ grad_output_kept") as caught:
        failed.raise_if_failed(strict=strict)
    assert type(caught.value) is GradientMismatchError
    assert str(caught.value) == str(failed)


def test_a_contract_is_a_list_of_entries() -> None:
    found = report("broken_contract")
    assert isinstance(found.contract, list)
    assert [entry.name for entry in found.broken] == ["grad_output_kept", "layouts"]
    assert [entry.status for entry in found.broken] == ["failed", "failed"]
    assert pickle.loads(pickle.dumps(found)).contract == found.contract
    assert report("all_right").contract == []


def test_equal_but_for_an_entry_of_the_contract_is_not_equal() -> None:
    found = report("broken_contract")
    assert found == replace(found, contract=list(found.contract))
    assert found != replace(found, contract=contract())


def test_str_is_the_text_and_a_notebook_shows_the_html() -> None:
    shown = report("two_of_twelve_wrong")
    assert str(shown) == text(shown)
    assert shown._repr_html_() == html(shown)


@pytest.mark.parametrize(
    ("sample", "line"),
    [
        (
            "all_right",
            "<Report: gradients right: 12 of 12 parameters; relative error 4.2e-09 (great) over the whole θ>",
        ),
        (
            "everything_wrong",
            "<Report: gradients WRONG in 60 of 60 parameters; relative error 3.3e-01 (worry) over the whole θ>",
        ),
        (
            "two_of_twelve_wrong",
            "<Report: gradients WRONG in 2 of 12 parameters; culprit: norm1; relative error 8.7e-02 (worry) over the "
            "whole θ>",
        ),
        (
            "partly_wrong",
            "<Report: gradients WRONG in 3 of 3 parameters; culprit: the model's own forward; relative error 4.2e-09 "
            "(great) over the whole θ>",
        ),
        (
            "broken_contract",
            "<Report: gradients right: 2 of 2 parameters, contract BROKEN in 2 of 11 entries: grad_output_kept, "
            "layouts; relative error 4.2e-09 (great) over the whole θ>",
        ),
        (
            "nothing_proven",
            "<Report: no gradient proven right: 0 of 1 parameter, 1 flat (nothing proven); "
            "no relative error: nothing was decided>",
        ),
    ],
    ids=["right", "wrong", "culprit", "culprit itself", "broken contract", "nothing proven"],
)
def test_repr_is_one_line(sample: str, line: str) -> None:
    assert repr(report(sample)) == line


@pytest.mark.parametrize("indent", [None, 2], ids=["compact", "indented"])
def test_json_is_the_dict(indent: int | None) -> None:
    kept = report("odd_shapes_and_figures")
    assert json.loads(kept.to_json(indent=indent)) == kept.to_dict()
    assert ("\n" in kept.to_json(indent=indent)) == (indent is not None)


def test_a_report_is_a_sequence_of_its_rows() -> None:
    rows = report("odd_shapes_and_figures")
    assert len(rows) == len(list(rows)) == 10
    assert rows["head.weight"] is rows["embedding.weight"]


def test_a_report_can_be_sent_to_another_process() -> None:
    sent = report("two_of_twelve_wrong")
    received = pickle.loads(pickle.dumps(sent))
    assert type(received) is Report
    assert str(received) == str(sent)


def test_rows_are_found_by_name_alias_and_position() -> None:
    found = report("odd_shapes_and_figures")
    assert found[0] is found["scale"]
    assert found[-1] is list(found)[-1]
    assert found[np.int64(1)] is found["empty"]
    assert found[1:3] == [found["empty"], found["head.weight"]]


@pytest.mark.parametrize(
    ("key", "error", "message"),
    [
        (10, IndexError, "no row 10 in this report; there are scale, empty, embedding.weight and 7 more"),
        (-11, IndexError, "no row -11 in this report"),
        ("heed.weight", KeyError, "no row 'heed.weight' in this report; close names: head.weight"),
        (
            "zzz",
            KeyError,
            "no row 'zzz' in this report; known names: scale, empty, embedding.weight, ",
        ),
        (1.5, TypeError, "found by its name or its position, not by a float"),
        (None, TypeError, "not by a NoneType"),
    ],
    ids=str,
)
def test_a_row_that_is_not_there_is_answered_with_those_that_are(
    key: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        report("odd_shapes_and_figures")[key]


def test_no_row_at_all() -> None:
    with pytest.raises(IndexError, match="there are none"):
        report("no_parameters")[0]


def test_each_part_says_what_it_is_on_one_line() -> None:
    wrong = report("two_of_twelve_wrong").mismatches[0]
    assert repr(wrong) == "<ParameterReport norm1.weight 16: mismatch, relative error 3.3e-01, 16 of 16 wrong>"
    assert repr(wrong.worst[0]) == "<Coordinate [4]: mismatch, analytic 3.460000e-02, numeric 1.730000e-02 ± 1e-11>"
    assert repr(wrong.diagnosis).startswith("<Diagnosis scaled: dθ = 2.000 × the right gradient in every entry")
    assert repr(report("partly_wrong")[0].map) == "<WrongMap 10 rows × 8 columns: 14 of 80 cells are wrong>"
    assert repr(report("broken_contract").contract[1]) == "<ContractEntry inputs_kept: passed>"
    assert repr(unmeasured("embed.weight", 3, 2)) == "<ParameterReport embed.weight 3×2: frozen>"


@pytest.mark.parametrize("sample", SAMPLES, ids=str)
def test_no_repr_breaks_a_line(sample: str) -> None:
    found = report(sample)
    parts = [found, *found, *found.contract, *(entry for row in found for entry in row.worst)]
    parts += [part for row in found for part in (row.diagnosis, row.map) if part]
    assert [said for part in parts if not (said := repr(part)).isprintable()] == []


def test_parts_are_equal_by_content_and_nan_equals_nan() -> None:
    one, other = (report("odd_shapes_and_figures")["not_finite"] for _ in range(2))
    again = replace(one, relative_error=float("nan"), worst=[replace(entry) for entry in one.worst], seconds=9.0)
    assert one == other == again
    assert len({one, other, again}) == 1
    assert one != replace(one, mismatched=1)
    assert one != replace(one, worst=[replace(one.worst[0], analytic=0.0), *one.worst[1:]])
    assert one != "not_finite"
    assert hash(one.worst[0]) == hash(again.worst[0])


def test_equal_reports_differ_in_seconds_at_most() -> None:
    found = report("nothing_wrong_not_all_proven")
    later = replace(found, seconds=99.0, parameters=tuple(replace(row, seconds=1.0) for row in found))
    assert found == later
    assert len({found, later}) == 1
    for change in ({"seed": 1}, {"loss": 2.0}, {"notes": ["one"]}, {"parameters": found.parameters[1:]}):
        assert found != replace(found, **change)
    assert found != SAMPLES["nothing_wrong_not_all_proven"], "the facts alone are no report"


@pytest.mark.parametrize(
    "part", [lambda r: r, lambda r: r[0], lambda r: r.mismatches[0].worst[0]], ids=["report", "row", "entry"]
)
def test_what_was_found_stays_what_it_was(part: Callable[[Report], Any]) -> None:
    with pytest.raises(FrozenInstanceError):
        part(report("two_of_twelve_wrong")).noise = 0.0
