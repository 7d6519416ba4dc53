"""The mistake that says the most is told first, and rows are told as one where it is one mistake."""

from __future__ import annotations

import pytest

from tests.reporting.render.samples import facts, wrong
from torch_gradcheck.reporting.facts import Diagnosis, DiagnosisKind
from torch_gradcheck.reporting.render.mistakes import alike

NORM = "the gradient of the input x of autograd.Function Norm in a is off by a multiple of 1 (its mean) along axis 1"
OTHER = "the gradient of the input x of autograd.Function Norm in b is off by a multiple of the output along axis 1"
END = ". With that put right, dθ is right"


def said(kind: str, message: str, factor: float | None = None) -> Diagnosis:
    return Diagnosis(DiagnosisKind(kind), message, factor)


def groups(*diagnoses: Diagnosis) -> list[list[str]]:
    rows = [wrong(str(k), 3, diagnosis=each, relative_error=0.9 - k / 10) for k, each in enumerate(diagnoses)]
    return [[row.name for row in group] for group in alike(facts(*rows, culprit="a"))]


def test_what_is_wrong_comes_before_where_and_what_is_not_known() -> None:
    unknown, place = said("unknown", "no simple relation"), said("partial", "dθ is right except in row 1 of 3")
    block = said("block", "the gradient of the input of a is right except in column 2 of 4")
    assert groups(unknown, place, block, said("scaled", "dθ = 2 × the right gradient", 2.0)) == [
        ["3"],
        ["1"],
        ["2"],
        ["0"],
    ]


@pytest.mark.parametrize(
    ("second", "together"),
    [
        pytest.param(f"{NORM}{END}", True, id="the same"),
        pytest.param(f"{NORM} (and likewise in 2 more calls){END}", True, id="in more calls"),
        pytest.param(f"{OTHER}{END}", False, id="of another module"),
        pytest.param(f"{NORM}; {OTHER}{END}", False, id="of two modules"),
    ],
)
def test_mistakes_of_one_kind_are_one_where_the_same_call_makes_them(second: str, together: bool) -> None:
    found = groups(said("projection", f"{NORM}{END}"), said("projection", second))
    assert found == ([["0", "1"]] if together else [["0"], ["1"]])
