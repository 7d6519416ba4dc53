"""Values of JSON become what the annotations of a dataclass say, or are refused with their place."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from torch_gradcheck.errors import InvalidRequestError
from torch_gradcheck.reporting.typed_json import TypedReader


@dataclass(frozen=True)
class Inner:
    flags: tuple[bool, ...] = ()


@dataclass(frozen=True)
class Outer:
    sizes: dict[str, float]
    word: int | str | None = None
    pair: tuple[int, str] = (0, "")
    inner: list[Inner] = field(default_factory=list)
    made: int = field(default=7, init=False)


class Derived(Inner):
    pass


def test_types_that_are_made_of_others() -> None:
    read = TypedReader().read(
        Outer,
        {"sizes": {"a": 1, "b": "inf"}, "word": "x", "pair": [3, "y"], "inner": [{"flags": [True]}], "made": 1},
        "$",
    )
    assert read == Outer({"a": 1.0, "b": float("inf")}, "x", (3, "y"), [Inner((True,))])
    assert isinstance(read.sizes["a"], float)


@pytest.mark.parametrize("word", [3, "three", None], ids=repr)
def test_a_union_is_the_first_type_that_fits(word: object) -> None:
    assert TypedReader().read(Outer, {"sizes": {}, "word": word}, "$").word == word


def test_a_class_stands_for_the_annotated_one() -> None:
    read = TypedReader({Inner: Derived}).read(Outer, {"sizes": {}, "inner": [{}]}, "$")
    assert type(read.inner[0]) is Derived


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"sizes": []}, r"^\$\.sizes must be an object with keys, and is \[\]\.$"),
        ({"sizes": {"a": None}}, r"^\$\.sizes\.a must be a number"),
        ({"sizes": {}, "word": 1.5}, r"^\$\.word must be a string, and is 1\.5"),
        ({"sizes": {}, "pair": [1]}, r"^\$\.pair must have 2 items, and has 1"),
        ({"sizes": {}, "pair": "ab"}, r"^\$\.pair must be a list"),
        ({"sizes": {}, "inner": [{"flags": [0]}]}, r"^\$\.inner\[0\]\.flags\[0\] must be true or false, and is 0"),
        ({"sizes": {}, "pair": (1, {2})}, r"^\$\.pair\[1\] must be a string, and is \"\{2\}\"\.$"),
        ({"sizes": "long" * 50}, r"is \"(long)+l?o?n?…\.$"),
        ({}, r"^\$ has no key 'sizes'\.$"),
        ([], r"^\$ must be an object with keys, and is \[\]"),
    ],
    ids=["dict", "in a dict", "union", "length", "tuple", "flag", "no JSON", "long", "key", "object"],
)
def test_what_does_not_fit_is_told_with_its_place(value: Any, message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        TypedReader().read(Outer, value, "$")
