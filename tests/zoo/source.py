"""Lines of the tests' own code, read from the source."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any


def def_line(function: Callable[..., Any]) -> int:
    """The line of the `def` of a function or method, or of the `class`; decorators stand above it."""
    lines, start = inspect.getsourcelines(function)
    return start + next(k for k, line in enumerate(lines) if line.lstrip().startswith(("def ", "async def ", "class ")))
