"""`assert report == other` says what became wrong, and which facts differ."""

from __future__ import annotations

from dataclasses import replace

import pytest

from torch_gradcheck.pytest_plugin.comparison import differences


def test_an_assertion_says_what_is_different(run):
    result = run(
        """
def test_it():
    old, new = (torch_gradcheck.check_module(linear(), loss, X, gradients=of) for of in (None, NOTHING))
    assert new == old
"""
    )

    result.stdout.fnmatch_lines(
        [
            "E * assert <Report: gradients WRONG in 2 of 2*> == <Report: gradients right: 2 of 2*",
            "E * left of == is called new, right of it old:",
            "E * 2 BECAME WRONG",
            "E * old: gradients right: 2 of 2 parameters",
        ]
    )


def test_facts_that_differ_are_named(wrong_report):
    row = replace(wrong_report["weight"], eps=1e-3)
    other = replace(wrong_report, seed=7, seconds=5.0, parameters=(row, wrong_report["bias"]))

    lines = differences("==", wrong_report, other)

    assert "seed: 0 != 7" in lines
    assert "row weight: eps differ" in lines
    assert not [line for line in lines if line.startswith(("seconds", "row bias"))]


@pytest.mark.parametrize(("operator", "right"), [("!=", "the same"), ("==", 1), ("is", "the same")])
def test_other_comparisons_are_left_to_pytest(wrong_report, operator, right):
    assert differences(operator, wrong_report, wrong_report if right == "the same" else right) is None
    assert differences(operator, 1, 2) is None
