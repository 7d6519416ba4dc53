from __future__ import annotations

import json
import pickle
from dataclasses import fields, replace

import pytest

from tests.reporting.render.samples import SAMPLES
from torch_gradcheck.errors import GradcheckError, GradientMismatchError
from torch_gradcheck.reporting.facts import Facts
from torch_gradcheck.reporting.render.html import html
from torch_gradcheck.reporting.render.text import text
from torch_gradcheck.reporting.report import Report


def report(sample: str) -> Report:
    found = SAMPLES[sample]
    return Report(**{field.name: getattr(found, field.name) for field in fields(Facts)})


def test_a_report_without_mismatch_does_not_raise() -> None:
    report("nothing_wrong_not_all_proven").raise_if_failed()


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


def test_str_is_the_text_and_a_notebook_shows_the_html() -> None:
    shown = report("two_of_twelve_wrong")
    assert str(shown) == text(shown)
    assert shown._repr_html_() == html(shown)


@pytest.mark.parametrize(
    ("sample", "line"),
    [
        ("all_right", "<Report: gradients right: 12 of 12 parameters; relative error 4.2e-09 (great)>"),
        ("everything_wrong", "<Report: gradients WRONG in 60 of 60 parameters; relative error 3.3e-01 (worry)>"),
    ],
    ids=["right", "wrong"],
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
