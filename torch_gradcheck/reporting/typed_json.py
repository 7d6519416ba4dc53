"""Values of JSON read as the types that a dataclass is annotated with; what does not fit is told with its place."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from enum import Enum
from functools import cache
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from torch_gradcheck.errors import InvalidRequestError

NOT_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
"""The strings that stand for the floats that JSON has no number for."""

KINDS = {
    bool: "true or false",
    int: "an integer",
    float: 'a number (or "nan", "inf", "-inf")',
    str: "a string",
}
"""What a value of a plain type is called."""

LARGEST = 2**1023
"""The largest integer that is read, since a larger one is no float."""

OBJECT = "an object with keys"

LONGEST = 60
"""Characters of a value in a message."""


@dataclass(frozen=True, slots=True)
class TypedReader:
    """Reads values of JSON, as `json.loads` returns them, as typed values.

    Keys that a dataclass does not have are passed over; a key that is missing stands for its field's default.

    Attributes:
        made_as: the classes that are made in place of the annotated ones.
    """

    made_as: Mapping[type, type] = field(default_factory=dict)

    def read(self, annotation: Any, value: object, at: str) -> Any:
        """Returns `value` as what `annotation` says; `at` is its place, such as `$.parameters[3].status`.

        Raises:
            InvalidRequestError: it is something else.
        """
        if get_origin(annotation) in READERS:
            return READERS[get_origin(annotation)](self, get_args(annotation), value, at)
        if is_dataclass(annotation):
            assert isinstance(annotation, type)
            return self._record(annotation, value, at)
        return _plain(annotation, value, at)

    def _record(self, record: type, value: object, at: str) -> Any:
        keys = _expected(Mapping, value, at, OBJECT)
        types, read = _types_of(record), {}
        for name, is_required in _fields_of(record).items():
            if name in keys:
                read[name] = self.read(types[name], keys[name], f"{at}.{name}")
            elif is_required:
                raise InvalidRequestError(f"{at} has no key {name!r}.")
        return self.made_as.get(record, record)(**read)

    def as_union(self, types: tuple[Any, ...], value: object, at: str) -> Any:
        """The value as the first of `types` that it fits."""
        if value is None and NoneType in types:
            return None
        others = [each for each in types if each is not NoneType]
        for each in others[:-1]:
            try:
                return self.read(each, value, at)
            except InvalidRequestError:
                continue
        return self.read(others[-1], value, at)

    def as_list(self, types: tuple[Any, ...], value: object, at: str) -> list[Any]:
        """The items of a list, each of the one type."""
        items = _expected((list, tuple), value, at, "a list")
        return [self.read(types[0], item, f"{at}[{number}]") for number, item in enumerate(items)]

    def as_tuple(self, types: tuple[Any, ...], value: object, at: str) -> tuple[Any, ...]:
        """A tuple: of any length where its type ends in an ellipsis, else of as many items as it has types."""
        if types[-1] is Ellipsis:
            return tuple(self.as_list(types, value, at))
        items = _expected((list, tuple), value, at, "a list")
        if len(items) != len(types):
            raise InvalidRequestError(f"{at} must have {len(types)} items, and has {len(items)}.")
        each = enumerate(zip(types, items, strict=True))
        return tuple([self.read(of, item, f"{at}[{number}]") for number, (of, item) in each])

    def as_dict(self, types: tuple[Any, ...], value: object, at: str) -> dict[str, Any]:
        """A dict from strings to values of the one type."""
        keys = _expected(Mapping, value, at, OBJECT)
        return {key: self.read(types[1], item, f"{at}.{key}") for key, item in keys.items()}


READERS: dict[Any, Callable[[TypedReader, tuple[Any, ...], object, str], Any]] = {
    UnionType: TypedReader.as_union,
    Union: TypedReader.as_union,
    list: TypedReader.as_list,
    tuple: TypedReader.as_tuple,
    dict: TypedReader.as_dict,
}
"""What reads the types that are made of others."""


def _plain(annotation: type, value: object, at: str) -> Any:
    """A word, a string, a number or a boolean. An integer is a float as well, and true and false are no integers."""
    if issubclass(annotation, Enum):
        return _word(annotation, value, at)
    if annotation is float and isinstance(value, int | str):
        return _float(value, at)
    if annotation is int and isinstance(value, int) and (isinstance(value, bool) or abs(value) > LARGEST):
        raise _misfit(value, at, KINDS[int])
    return _expected(annotation, value, at, KINDS[annotation])


def _float(value: int | str, at: str) -> float:
    if isinstance(value, str) and value in NOT_FINITE:
        return NOT_FINITE[value]
    if isinstance(value, bool | str) or abs(value) > LARGEST:
        raise _misfit(value, at, KINDS[float])
    return float(value)


def _word(words: type[Enum], value: object, at: str) -> Enum:
    known = [word.value for word in words]
    if value not in known:
        raise _misfit(value, at, f"one of {', '.join(known)}")
    return words(value)


def _expected(kind: type | tuple[type, ...], value: object, at: str, called: str) -> Any:
    if not isinstance(value, kind):
        raise _misfit(value, at, called)
    return value


def _misfit(value: object, at: str, expected: str) -> InvalidRequestError:
    return InvalidRequestError(f"{at} must be {expected}, and is {in_short(value)}.")


def in_short(value: object) -> str:
    """Returns a value as JSON writes it, and what JSON has no form for by its `repr`; cut to a few words."""
    found = json.dumps(value, default=repr, skipkeys=True)
    return found if len(found) <= LONGEST else f"{found[: LONGEST - 1]}…"


@cache
def _types_of(record: type) -> dict[str, Any]:
    return get_type_hints(record)


@cache
def _fields_of(record: type) -> dict[str, bool]:
    """The names of the fields that `record` is made from, and whether each must be given."""
    made_from = [each for each in fields(record) if each.init]
    return {each.name: each.default is MISSING and each.default_factory is MISSING for each in made_from}
