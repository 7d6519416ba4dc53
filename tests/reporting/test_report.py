from __future__ import annotations

import json
import pickle
from dataclasses import replace

import pytest

from tests.reporting.render.samples import SAMPLES, contract, facts, match, report_of, row
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
    ids=["right", "wrong", "broken contract", "nothing proven"],
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
