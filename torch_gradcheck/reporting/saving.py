"""Files that are written whole or not at all, and the report in one of its forms as such a file."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path

from torch_gradcheck.errors import InvalidRequestError
from torch_gradcheck.reporting.facts import Facts
from torch_gradcheck.reporting.render.formats import FORMATS


def save(facts: Facts, path: str | os.PathLike[str], title: str | None) -> None:
    """Writes the report in the form that the suffix of `path` names; see `Report.save`."""
    if not isinstance(path, str | os.PathLike):
        raise InvalidRequestError(f"a report is saved to a path, not to a {type(path).__name__}.")
    target = Path(path)
    suffix = target.suffix.lower().removeprefix(".")
    if suffix not in FORMATS:
        known = " or ".join(f".{each}" for each in FORMATS)
        raise InvalidRequestError(f"a report is saved as {known}, by the suffix of its path, which is {str(target)!r}.")
    require_place_for(target)
    write_whole(target, FORMATS[suffix].write(facts, target.stem if title is None else title))


def require_place_for(path: Path) -> None:
    """Raises InvalidRequestError if no file can be written at `path`, as far as can be seen before."""
    if why := _why_unwritable(path):
        raise InvalidRequestError(f"the report cannot be written to {path}: {why}.")


def _why_unwritable(path: Path) -> str:
    if "\0" in str(path):
        return "a path holds no null character"
    try:
        return _what_is_in_the_way(path)
    except OSError as error:  # a folder that may not be looked into, a name that is too long
        return error.strerror or str(error)


def _what_is_in_the_way(path: Path) -> str:
    if path.is_dir():
        return "it is a directory"
    if not path.parent.is_dir():
        return f"there is no directory {path.parent}"
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        return f"no permission to write {'to it' if path.exists() else f'in {path.parent}'}"
    return ""


def write_whole(path: Path, text: str) -> None:
    """Writes `text` in UTF-8. What was at `path` stays until all of it is written; pipes and devices are written to.

    Lone surrogates, which UTF-8 has no bytes for, are spelled out.

    Raises:
        InvalidRequestError: the file cannot be written; the system's own error is chained.
    """
    try:
        _write_whole(path, text)
    except OSError as error:
        raise InvalidRequestError(f"the report cannot be written to {path}: {error.strerror or error}.") from error


def _write_whole(path: Path, text: str) -> None:
    written = text.encode("utf-8", errors="backslashreplace")
    place = path.resolve()  # where a link leads to: the link stays
    if place.exists() and not place.is_file():
        place.write_bytes(written)
        return
    beside = place.with_name(f".torch-gradcheck-{secrets.token_hex(4)}")
    try:
        beside.write_bytes(written)
        if place.exists():
            beside.chmod(place.stat().st_mode)
        beside.replace(place)
    except PermissionError:  # the file may be written to, though its directory may not
        place.write_bytes(written)
    finally:
        with suppress(FileNotFoundError):
            beside.unlink()
