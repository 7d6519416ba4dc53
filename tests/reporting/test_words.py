"""Names listed in sentences: a few of many, and how many more there are."""

from __future__ import annotations

import pytest

from torch_gradcheck.reporting.words import listed


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, ""), (1, "a"), (3, "a, b, c"), (4, "a, b, c and 1 more"), (9, "a, b, c and 6 more")],
    ids=str,
)
def test_three_names_and_how_many_more(count: int, text: str) -> None:
    assert listed(list("abcdefghi")[:count]) == text


def test_as_many_as_asked_for_in_words_of_their_own() -> None:
    assert listed([1, 2, 3], most=2, in_words=lambda k: f"[{k}]") == "[1], [2] and 1 more"
