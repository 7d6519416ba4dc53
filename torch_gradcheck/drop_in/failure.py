"""What the drop-in raises: each error is what torch raises in its place, and one of our own as well."""

from __future__ import annotations

from torch.autograd.gradcheck import GradcheckError as TorchGradcheckError

from torch_gradcheck.errors import GradientMismatchError, InvalidRequestError
from torch_gradcheck.reporting.report import Report


class GradcheckFailedError(GradientMismatchError, TorchGradcheckError):
    """A check of `gradcheck` has failed: an `AssertionError`, a `RuntimeError` and torch's own `GradcheckError`.

    Attributes:
        report: of `check_function`, where that has found something wrong, too; else None.
    """

    def __init__(self, message: str, report: Report | None = None) -> None:
        super().__init__(message)
        self.report = report


class OverlappingMemoryError(InvalidRequestError, RuntimeError):
    """An input has several entries in one place of memory, which cannot be moved one at a time."""


class ContradictoryFlagsError(InvalidRequestError, AssertionError):
    """Two arguments of `gradcheck` cannot be meant together, or they leave nothing to check."""
