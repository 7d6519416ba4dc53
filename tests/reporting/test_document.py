"""Reports read back from JSON are those that were written; what is none is refused with its place."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given, settings

from tests.reporting.made_up import ANY_REPORT, REPORTS
from tests.reporting.render.samples import NAN, facts, match
from tests.reporting.render.test_json_report import strict
from tests.zoo.sweeps import EXAMPLES
from torch_gradcheck.errors import InvalidRequestError
from torch_gradcheck.reporting.report import Report

WRITTEN_BEFORE = Path(__file__).parent / "written_before"
"""Files that the version before reports could be read has written."""


@pytest.mark.parametrize("name", REPORTS, ids=str)
def test_a_report_read_back_is_the_one_that_was_written(name: str) -> None:
    written = REPORTS[name]
    for read in (Report.from_json(written.to_json()), Report.from_dict(written.to_dict())):
        assert type(read) is Report
        assert read == written
        assert hash(read) == hash(written)
        assert read.to_json() == written.to_json()


@pytest.mark.slow
@settings(max_examples=EXAMPLES)
@given(ANY_REPORT)
def test_any_report_survives_a_strict_parser_and_comes_back_equal(report: Report) -> None:
    read = Report.from_json(report.to_json())
    assert strict(report.to_json()) == report.to_dict()
    sent = pickle.loads(pickle.dumps(report))
    for other in (read, sent, copy.copy(report), copy.deepcopy(report)):
        assert other == report
        assert hash(other) == hash(report)
        assert list(other) == list(report)


@pytest.mark.parametrize("name", ["层.权重", "a\nb\x1b[31m", "\ud800 alone", "", "nan"], ids=ascii)
def test_names_of_all_sorts_come_back(name: str) -> None:
    report = Report(**vars(facts(match(name, 3), culprit=name)))
    assert Report.from_json(report.to_json()) == report


@pytest.mark.parametrize("path", sorted(WRITTEN_BEFORE.iterdir()), ids=lambda path: path.stem)
def test_a_file_of_the_version_before_is_read(path: Path) -> None:
    read = Report.load(path)
    assert _known_to(json.loads(path.read_text()), read.to_dict()) == json.loads(path.read_text())
    assert Report.load(path) == Report.from_json(path.read_bytes())


def test_reports_inside_a_report_are_reports() -> None:
    step, kernel = (Report.load(WRITTEN_BEFORE / f"{name}.json") for name in ("monitored_step", "candidate"))
    assert type(step.in_grad) is type(kernel.reference) is Report


def test_keys_that_are_not_known_are_passed_over() -> None:
    document = REPORTS["all_right"].to_dict()
    newer = {**document, "weather": "fine", "parameters": [{**row, "mood": 1} for row in _rows(document)]}
    assert Report.from_dict(newer) == REPORTS["all_right"]


def test_what_follows_from_the_rows_is_told_by_the_rows() -> None:
    document = {**REPORTS["two_of_twelve_wrong"].to_dict(), "passed": True, "mismatches": []}
    assert not Report.from_dict(document).passed


def test_keys_that_older_documents_lack_have_their_defaults() -> None:
    document = REPORTS["all_right"].to_dict()
    for key in ("contract", "processes", "reference", "order", "in_grad"):
        del document[key]
    assert Report.from_dict(document) == REPORTS["all_right"]


Change = Callable[[dict[str, Any]], object]

REFUSED: dict[str, tuple[Change, str]] = {
    "status": (lambda d: d["parameters"][3].update(status="wrong"), r"^\$\.parameters\[3\]\.status must be one of mat"),
    "key": (lambda d: d["parameters"][3].pop("name"), r"^\$\.parameters\[3\] has no key 'name'\.$"),
    "first key": (lambda d: d.pop("loss"), r"^\$ has no key 'loss'\.$"),
    "shape": (
        lambda d: d["parameters"][0].update(shape=[1, 2.5]),
        r"shape\[1\] must be an integer, and is 2\.5",
    ),
    "count": (
        lambda d: d["parameters"][0].update(checked=10**400),
        "checked must be an integer, and is 1000",
    ),
    "true": (lambda d: d["parameters"][0].update(checked=True), r"checked must be an integer, and is true"),
    "row": (lambda d: d["parameters"].insert(0, None), r"^\$\.parameters\[0\] must be an object with keys"),
    "rows": (lambda d: d.update(parameters={}), r"^\$\.parameters must be a list, and is \{\}"),
    "number": (lambda d: d.update(loss="NaN"), r'^\$\.loss must be a number \(or "nan", .*, and is "NaN"'),
    "large": (lambda d: d.update(loss=10**400), r"^\$\.loss must be a number .* and is 1000"),
    "null": (lambda d: d.update(noise=None), r"^\$\.noise must be a number .* and is null"),
    "string": (lambda d: d.update(culprit=3), r"^\$\.culprit must be a string, and is 3"),
    "slopes": (
        lambda d: d["parameters"][5]["worst"][0].update(slopes=[1]),
        r"worst\[0\]\.slopes must have 2 items, and has 1",
    ),
    "newer": (lambda d: d.update(schema_version=3), r"^\$\.schema_version is 3, .* reads 2: read the report with"),
    "older": (lambda d: d.update(schema_version=1), r"^\$\.schema_version is 1, "),
    "odd": (lambda d: d.update(schema_version=True), r"^\$\.schema_version is true, "),
    "none": (lambda d: d.pop("schema_version"), "no report: it has no key 'schema_version'"),
}


@pytest.mark.parametrize("change", REFUSED)
def test_what_is_no_report_is_refused_with_its_place(change: str) -> None:
    document = json.loads(REPORTS["nothing_wrong_not_all_proven"].to_json())
    made, message = REFUSED[change]
    made(document)
    with pytest.raises(InvalidRequestError, match=message):
        Report.from_dict(document)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "this is no JSON: Expecting value"),
        ("{", "this is no JSON: "),
        ("[1]", "no report"),
        ("null", "no report"),
        ("NaN", "NaN is not JSON"),
        ("[" * 100_000, "this is no JSON: "),
        (b"\xff\xfe\x00", "this is no JSON: "),
        ("runs/report.json", r"Report\.load\(path\) reads a file"),
        (None, "not from a NoneType"),
        (Path("report.json"), "not from a .*Path"),
    ],
    ids=["empty", "broken", "list", "null", "NaN", "deep", "bytes", "path", "None", "Path"],
)
def test_text_that_is_no_report_is_refused(text: Any, message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        Report.from_json(text)


def test_reports_nested_too_deeply_are_refused() -> None:
    document = REPORTS["no_parameters"].to_dict()
    for _ in range(1000):
        document = {**document, "reference": document}
    with pytest.raises(InvalidRequestError, match="nested too deeply"):
        Report.from_dict(document)


def test_a_file_that_is_no_report_is_named(tmp_path: Path) -> None:
    (tmp_path / "odd.json").write_text("{}")
    with pytest.raises(InvalidRequestError, match=r"odd\.json: this is no report"):
        Report.load(tmp_path / "odd.json")


@pytest.mark.parametrize("path", [None, 3, b"report.json"], ids=repr)
def test_what_is_no_path_is_refused(path: Any) -> None:
    with pytest.raises(InvalidRequestError, match="read from a path, not from a "):
        Report.load(path)


def test_a_dict_need_not_be_of_jsons_own_types() -> None:
    document = MappingProxyType({**REPORTS["no_parameters"].to_dict(), "parameters": (), "notes": ("one",)})
    assert Report.from_dict(document) == replace(REPORTS["no_parameters"], notes=["one"])


def test_nan_and_none_are_not_the_same() -> None:
    undecided, measured = (Report(**vars(facts(match("a", 3), relative_error=ratio))) for ratio in (None, NAN))
    assert undecided != measured
    assert Report.from_json(undecided.to_json()).relative_error is None
    assert replace(undecided, relative_error=NAN) == measured


def _rows(document: dict[str, object]) -> list[dict[str, object]]:
    rows = document["parameters"]
    assert isinstance(rows, list)
    return rows


def _known_to(before: Any, now: Any) -> Any:
    """What is written now, without the keys that were not there before."""
    if isinstance(before, dict):
        return {key: _known_to(value, now[key]) for key, value in before.items()}
    return [_known_to(*pair) for pair in zip(before, now, strict=True)] if isinstance(before, list) else now
