"""Scripts of benchmarks/ run in this process, which has imported torch already."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Callable
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def printed_by() -> Callable[..., str]:
    """A function: what a script prints when it is called with these arguments."""

    def run(script: ModuleType, *arguments: str) -> str:
        printed = io.StringIO()
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
            patch.setattr(sys, "argv", [str(script.__file__), *arguments])
            script.main()
        return printed.getvalue()

    return run
