"""Names listed in sentences: a few of many, and how many more there are."""

from __future__ import annotations

import pytest

from torch_gradcheck.reporting.facts import Role
from torch_gradcheck.reporting.words import counted, duration, listed, noun


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(12.0, "12 seconds"), (600.0, "10 minutes"), (1e5, "28 hours"), (1e6, "12 days"), (1e9, "32 years")],
)
def test_times_in_words(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_three_names_are_listed_and_the_others_counted() -> None:
    assert listed(["a"]) == "a"
    assert listed(["a", "b", "c"]) == "a, b, c"
    assert listed(list("abcde")) == "a, b, c and 2 more"


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, ""), (1, "a"), (3, "a, b, c"), (4, "a, b, c and 1 more"), (9, "a, b, c and 6 more")],
    ids=str,
)
def test_three_names_and_how_many_more(count: int, text: str) -> None:
    assert listed(list("abcdefghi")[:count]) == text


def test_as_many_as_asked_for_in_words_of_their_own() -> None:
    assert listed([1, 2, 3], most=2, in_words=lambda k: f"[{k}]") == "[1], [2] and 1 more"


@pytest.mark.parametrize(
    ("roles", "words"),
    [
        ([], "0 parameters"),
        ([Role.PARAMETER], "1 parameter"),
        ([Role.ARGUMENT] * 2, "2 arguments"),
        ([Role.PARAMETER] * 1200, "1,200 parameters"),
        ([Role.PARAMETER, Role.PARAMETER, Role.INPUT], "3 tensors (2 parameters, 1 input)"),
        ([Role.PARAMETER, Role.CAPTURED, Role.CAPTURED], "3 tensors (1 parameter, 2 captured tensors)"),
    ],
    ids=["none", "one", "arguments", "many", "and an input", "captured"],
)
def test_tensors_are_counted_by_what_they_are(roles: list[Role], words: str) -> None:
    assert counted(roles) == words


def test_every_role_has_its_noun() -> None:
    assert [noun([role]) for role in Role] == ["parameter", "input", "captured tensor", "argument", "output"]
    assert noun(list(Role)) == "tensor"
