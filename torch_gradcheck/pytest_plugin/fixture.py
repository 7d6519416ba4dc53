"""The fixture `gradcheck`: checks inside of a test, which fails with the table where a gradient is wrong."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pytest

import torch_gradcheck
from torch_gradcheck.pytest_plugin.failure import Failure
from torch_gradcheck.pytest_plugin.frames import is_hidden, without_ours
from torch_gradcheck.pytest_plugin.options import Settings, asked, closest
from torch_gradcheck.pytest_plugin.outcome import Outcome, outcome_of
from torch_gradcheck.pytest_plugin.report_files import write_report

if TYPE_CHECKING:
    from torch import nn

FAILURES = pytest.StashKey[list[Failure]]()
"""The checks that have failed the test, with the errors that they raised."""

OUTCOMES = pytest.StashKey[list[Outcome]]()
"""What the checks of the test have found since its last report."""

CALLS = ("closure", "function")
"""What the fixture has besides being called."""

LONGEST = 300
"""Characters of an error that are kept beside the outcomes."""


class GradcheckFixture:
    """Checks gradients in a test: `gradcheck(model, loss_fn, batch)`, `.closure(...)` and `.function(...)`.

    Each checks as the function of torch_gradcheck does that it is named after, fails the test with the table where a
    gradient is wrong or none was proven right, and returns the report where not. Options that a call does not give are
    those of `@pytest.mark.gradcheck(...)`, the command line and the ini file, in this order. Beside the options of the
    check there is `strict=True`: the test fails where a checked gradient is flat, unused or undecided too.

    Raises:
        GradientMismatchError: an `AssertionError`; a gradient is wrong, or a function's contract is broken.
        NothingProvenError: an `AssertionError`; nothing was proven right or, strict, not everything.
        GradcheckError: what cannot be checked, as the functions raise it.
    """

    def __init__(self, node: pytest.Item, settings: Settings) -> None:
        self._node = node
        self._settings = settings
        self._checks = 0

    def __repr__(self) -> str:
        return f"<the fixture gradcheck, used {self._checks} time{'s' * (self._checks != 1)}>"

    @property
    def is_used(self) -> bool:
        """Whether a check was called, whatever came of it."""
        return self._checks > 0

    if not TYPE_CHECKING:  # for type checkers there is nothing but what is written here

        def __getattr__(self, name: str) -> object:
            """Raises `AttributeError`, with the closest of the names that there are."""
            __tracebackhide__ = is_hidden
            raise AttributeError(f"gradcheck has no {name!r}{closest(name, CALLS)} There are: {', '.join(CALLS)}.")

    def __call__(
        self, model: nn.Module, loss_fn: Callable[..., Any], batch: Any, **options: Any
    ) -> torch_gradcheck.Report:
        """Checks `model` under `loss_fn` on `batch`, as `torch_gradcheck.check_module` does."""
        __tracebackhide__ = is_hidden
        return self._checked(torch_gradcheck.check_module, (model, loss_fn, batch), options)

    def closure(self, model: nn.Module, closure: Callable[[], Any], **options: Any) -> torch_gradcheck.Report:
        """Checks `model` under a `closure` that returns the loss, as `torch_gradcheck.check_closure` does."""
        __tracebackhide__ = is_hidden
        return self._checked(torch_gradcheck.check_closure, (model, closure), options)

    def function(
        self, function: Callable[..., Any], inputs: Sequence[Any] | Mapping[str, Any], **options: Any
    ) -> torch_gradcheck.Report:
        """Checks a function of tensors or a layer, and its contract, as `torch_gradcheck.check_function` does."""
        __tracebackhide__ = is_hidden
        return self._checked(torch_gradcheck.check_function, (function, inputs), options)

    def _checked(
        self, check: Callable[..., torch_gradcheck.Report], arguments: tuple[Any, ...], options: Mapping[str, Any]
    ) -> torch_gradcheck.Report:
        __tracebackhide__ = is_hidden
        self._checks += 1
        try:
            wanted = asked(check, options, self._node, self._settings)
            report = check(*arguments, **wanted.options)
            file = self._written(report)
        except (Exception, SystemExit, pytest.fail.Exception) as error:  # the last one of pytest-timeout, too
            self._end(error)
            raise
        failure = _failure_of(report, wanted.strict)
        self._tell(outcome_of(report, self._node.nodeid, self._checks, failure is None, file), report, failure)
        if failure is not None:
            raise failure
        return report

    def _written(self, report: torch_gradcheck.Report) -> str:
        """Writes the files of a check where that was asked for; returns their name."""
        directory = self._settings.directory
        return "" if directory is None else write_report(report, directory, self._node.nodeid, self._checks)

    def _end(self, error: BaseException) -> None:
        """Notes that a check has come to no report, and points the error to the user's own code."""
        ended = f"not checked: {type(error).__name__}: {_first_line(error)}"
        self._note(Outcome(self._node.nodeid, self._checks, ended, passed=False, is_report=False))
        if not self._settings.shows_all_frames:
            without_ours(error)

    def _tell(self, outcome: Outcome, report: torch_gradcheck.Report, failure: AssertionError | None) -> None:
        """Notes what a check has found, and the error that it fails the test with."""
        self._note(outcome)
        if failure is not None:
            self._node.stash.setdefault(FAILURES, []).append(Failure(failure, report, outcome.said))

    def _note(self, outcome: Outcome) -> None:
        self._node.stash.setdefault(OUTCOMES, []).append(outcome)
        self._node.user_properties.append(("gradcheck", outcome.said))


# what Python calls them where arguments are missing or too many
GradcheckFixture.__call__.__qualname__ = "gradcheck"
GradcheckFixture.closure.__qualname__ = "gradcheck.closure"
GradcheckFixture.function.__qualname__ = "gradcheck.function"


def _failure_of(report: torch_gradcheck.Report, strict: bool) -> AssertionError | None:
    """The error that a report ends its test with."""
    try:
        report.raise_if_failed(strict)
    except AssertionError as failure:
        return failure.with_traceback(None)
    return None


def _first_line(error: BaseException) -> str:
    try:
        return str(error).partition("\n")[0][:LONGEST]
    except Exception:  # an error of the user's, whose own text fails
        return "its text cannot be made"
