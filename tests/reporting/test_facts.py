"""Words with traits are strings like any other: equal, written and read back by their text alone."""

from __future__ import annotations

import json
import pickle

import pytest

from torch_gradcheck.reporting.facts import DiagnosisKind, Status
from torch_gradcheck.reporting.words import STATUS_WORDS


@pytest.mark.parametrize("word", [*Status, *DiagnosisKind], ids=lambda word: f"{type(word).__name__}-{word}")
def test_a_word_is_its_text(word: Status | DiagnosisKind) -> None:
    text = word.value
    assert word == text
    assert hash(word) == hash(text)
    assert (str(word), f"{word}", json.dumps(word)) == (text, text, f'"{text}"')
    assert type(word)(text) is word
    assert pickle.loads(pickle.dumps(word)) is word
    assert repr(word) == f"<{type(word).__name__}.{text.upper()}: {text!r}>"


def test_no_word_is_taken_for_another_because_of_its_traits() -> None:
    assert len({*Status, *DiagnosisKind}) == len(Status) + len(DiagnosisKind)


def test_every_status_has_its_words() -> None:
    assert set(STATUS_WORDS) == set(Status)


@pytest.mark.parametrize(
    ("asked", "kinds"),
    [
        ("is_about_places", "transposed permuted partial"),
        ("is_of_the_whole_gradient", "scaled sign_flipped missing weight_decay accumulated stale weighted unreduced"),
        ("needs_many_entries", "scaled spurious partial unknown"),
    ],
)
def test_kinds_have_these_traits(asked: str, kinds: str) -> None:
    assert [str(kind) for kind in DiagnosisKind if getattr(kind, asked)] == kinds.split()


def test_what_equal_diagnoses_of_two_parameters_say_together() -> None:
    assert [str(kind) for kind in DiagnosisKind if not kind.is_told_together] == [
        "partial",
        "slicewise",
        "wrong_sum",
        "unknown",
    ]
