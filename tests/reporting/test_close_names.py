"""Names that are not there are answered with those that may have been meant."""

from __future__ import annotations

import pytest

from torch_gradcheck.reporting.close_names import close_names


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
