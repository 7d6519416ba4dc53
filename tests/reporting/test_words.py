from __future__ import annotations

import pytest

from torch_gradcheck.reporting.words import close_names, duration, listed


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
    ("name", "known", "words"),
    [
        ("wieght", ["weight", "bias"], "close names: weight"),
        ("xyz", ["weight", "bias"], "known names: weight, bias"),
        ("xyz", ["aa", "bb", "cc", "dd", "ee", "ff"], "known names: aa, bb, cc, dd, ee, ..."),
        ("xyz", [], "there are no names at all"),
    ],
    ids=["close", "few", "many", "none"],
)
def test_a_wrong_name_is_answered_with_those_there_are(name: str, known: list[str], words: str) -> None:
    assert close_names(name, known) == words
