from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

import pytest

from tests.reporting.render.samples import INF, NAN, SAMPLES, facts, match
from torch_gradcheck.contract.entries import ENTRIES
from torch_gradcheck.reporting.facts import (
    ContractEntry,
    ContractStatus,
    Coordinate,
    Diagnosis,
    DiagnosisKind,
    Facts,
    Pairs,
    ParameterReport,
    Provenance,
    Status,
    Verdict,
    WrongMap,
)
from torch_gradcheck.reporting.render.json_report import SCHEMA_VERSION, as_dict, as_json

DOCUMENT = (Path(__file__).parents[3] / "docs" / "SCHEMA.md").read_text(encoding="utf-8")


def strict(text: str) -> Any:
    """What a parser reads that knows no NaN and no Infinity."""

    def refuse(constant: str) -> NoReturn:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def section(title: str) -> str:
    """The part of the document below a heading."""
    return re.split(r"^#+ ", DOCUMENT.split(f"# {title}\n")[1], flags=re.MULTILINE)[0]


def documented_keys(title: str) -> list[str]:
    return re.findall(r"^\| `(\w+)` \|", section(title), flags=re.MULTILINE)


@pytest.mark.parametrize("name", SAMPLES, ids=str)
def test_every_field_is_there(name: str) -> None:
    report = SAMPLES[name]
    written: Any = as_dict(report)
    assert {field.name for field in fields(Facts)} <= set(written)
    assert written["schema_version"] == SCHEMA_VERSION
    assert written["passed"] is report.passed
    assert written["mismatches"] == [row.name for row in report.mismatches]
    assert [set(row) for row in written["parameters"]] == [{f.name for f in fields(ParameterReport)}] * len(report)


def test_values_are_those_of_the_report() -> None:
    written: Any = strict(as_json(SAMPLES["two_of_twelve_wrong"]))
    row = written["parameters"][8]
    assert written["mismatches"] == ["norm1.weight", "self_attn.out_proj.weight"]
    assert (row["name"], row["shape"], row["status"], row["verdict"]) == ("norm1.weight", [16], "mismatch", "worry")
    assert row["diagnosis"]["kind"] == "scaled"
    assert row["diagnosis"]["factor"] == 2.0
    assert row["worst"][0]["index"] == [4]
    assert row["worst"][0]["analytic"] == 0.0346


def test_the_contract_is_written_entry_by_entry() -> None:
    written: Any = strict(as_json(SAMPLES["broken_contract"]))
    assert written["passed"] is written["proven"] is False
    assert written["mismatches"] == []
    assert [entry["name"] for entry in written["contract"] if entry["status"] == "failed"] == [
        "grad_output_kept",
        "layouts",
    ]
    assert written["contract"][9] == {
        "name": "forward_ad",
        "status": "not_applicable",
        "message": "The Function has no jvp.",
    }


@pytest.mark.parametrize(
    ("value", "written"), [(NAN, "nan"), (INF, "inf"), (-INF, "-inf"), (0.1, 0.1)], ids=["nan", "inf", "-inf", "number"]
)
def test_floats_that_json_cannot_write_are_strings(value: float, written: object) -> None:
    read = strict(as_json(facts(loss=value)))["loss"]
    assert read == written
    assert float(read) == value or math.isnan(value)


def test_only_json_types_are_used() -> None:
    def visit(value: object) -> None:
        assert type(value) in (dict, list, str, int, float, bool, type(None))
        for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            visit(item)

    visit(as_dict(SAMPLES["odd_shapes_and_figures"]))


def test_indent_is_passed_on() -> None:
    assert as_json(facts(), indent=2).startswith('{\n  "schema_version": 2,')


@pytest.mark.parametrize(
    ("title", "keys"),
    [
        ("Report", list(as_dict(facts(match("weight", 3))))),
        ("Parameter", [field.name for field in fields(ParameterReport)]),
        ("Coordinate", [field.name for field in fields(Coordinate)]),
        ("Diagnosis", [field.name for field in fields(Diagnosis)]),
        ("Status", list(Status)),
        ("Map", [field.name for field in fields(WrongMap)]),
        ("Pairs", [field.name for field in fields(Pairs)]),
        ("Provenance", [field.name for field in fields(Provenance)]),
        ("Contract entry", [field.name for field in fields(ContractEntry)]),
    ],
    ids=["report", "parameter", "coordinate", "diagnosis", "status", "map", "pairs", "provenance", "contract"],
)
def test_document_has_every_key_and_no_other(title: str, keys: list[str]) -> None:
    assert documented_keys(title) == keys


@pytest.mark.parametrize(
    ("title", "words"),
    [
        ("Report", Verdict),
        ("Parameter", Status),
        ("Diagnosis", DiagnosisKind),
        ("Contract entry", ContractStatus),
        ("Contract entry", ENTRIES),
    ],
    ids=["verdict", "status", "diagnosis", "contract", "entries"],
)
def test_document_names_every_word(title: str, words: Iterable[str]) -> None:
    assert [word for word in words if f"`{word}`" not in section(title)] == []


def test_document_is_of_this_version() -> None:
    assert f"`schema_version` {SCHEMA_VERSION}." in DOCUMENT
