"""A report read back from the JSON that it was written as."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import NoReturn, TypeVar

from torch_gradcheck.errors import InvalidRequestError
from torch_gradcheck.reporting.facts import Facts
from torch_gradcheck.reporting.render.json_report import SCHEMA_VERSION
from torch_gradcheck.reporting.typed_json import TypedReader, in_short

SomeFacts = TypeVar("SomeFacts", bound=Facts)


def from_text(kind: type[SomeFacts], text: str | bytes) -> SomeFacts:
    """Returns the report that `text` is the JSON of.

    Raises:
        InvalidRequestError: it is no JSON, or no report that this version reads.
    """
    if not isinstance(text, str | bytes | bytearray):
        raise InvalidRequestError(f"a report is read from the text of its JSON, not from a {type(text).__name__}.")
    try:
        document = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        hint = " Report.load(path) reads a file." if isinstance(text, str) and text.endswith(".json") else ""
        raise InvalidRequestError(f"this is no JSON: {error}.{hint}") from error
    return from_document(kind, document)


def from_document(kind: type[SomeFacts], document: object) -> SomeFacts:
    """Returns the report that `document` says, as `to_dict` or `json.loads` made it.

    What follows from the rows, such as `passed`, is not read: it is told by the rows again.

    Raises:
        InvalidRequestError: it is no report, or one of another version of the keys.
    """
    _refuse_others(document)
    try:
        report = TypedReader({Facts: kind}).read(Facts, document, "$")
    except RecursionError as error:
        raise InvalidRequestError("this is no report: it is nested too deeply.") from error
    assert isinstance(report, kind)
    return report


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON; a report has it as a string")


def _refuse_others(document: object) -> None:
    if not isinstance(document, Mapping) or "schema_version" not in document:
        raise InvalidRequestError("this is no report: it has no key 'schema_version'.")
    version = document["schema_version"]
    if version != SCHEMA_VERSION or isinstance(version, bool):
        raise InvalidRequestError(
            f"$.schema_version is {in_short(version)}, and this version of torch_gradcheck reads {SCHEMA_VERSION}: "
            "read the report with the version that wrote it, or run the check again."
        )
