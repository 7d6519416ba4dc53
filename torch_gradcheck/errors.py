"""Everything the package raises of its own; each error says what is wrong, where, the figures, and what to do."""

from __future__ import annotations


class GradcheckError(Exception):
    """Base of every error of this package."""


class InvalidRequestError(GradcheckError, TypeError, ValueError):
    """An argument of the caller's cannot be used: wrong type, wrong value, or it does not fit the model."""


class MisfitError(InvalidRequestError, RuntimeError, IndexError):
    """torch refused what the model or the loss handed to it: shapes, kinds of numbers, devices or indices do not fit.

    Or it refused the backward of a Function: the shape, number or kind of the gradients that it returns, its signature.
    It is raised from torch's own exception, and is a RuntimeError and an IndexError as that is, for those who catch it.
    """


class NonScalarLossError(GradcheckError):
    """J(θ) is not one real number: it has several entries, is complex, or is not a tensor at all."""


class NonFiniteLossError(GradcheckError):
    """J(θ) is NaN or infinite at the weights being checked.

    Attributes:
        module: qualified name of the first module whose output is not finite, None if the loss itself is the first.
    """

    def __init__(self, message: str, module: str | None = None) -> None:
        super().__init__(message)
        self.module = module


class NonDeterministicLossError(GradcheckError):
    """Two equal calls gave two values of J(θ), though the random state was the same.

    Attributes:
        module: qualified name of the first module whose output changes, None if it is the loss.
    """

    def __init__(self, message: str, module: str | None = None) -> None:
        super().__init__(message)
        self.module = module


class ProcessGroupError(GradcheckError):
    """A check that several processes share cannot go on: a rank has ended, was interrupted, or was given another J."""


class UnequalRanksError(ProcessGroupError, InvalidRequestError):
    """The ranks of a group were given different models, batches or options, and share a check of one J."""


class MissingMatplotlibError(InvalidRequestError, ImportError):
    """A figure was asked for, and matplotlib is not installed."""


class GradientMismatchWarning(UserWarning):
    """A gradient is wrong, or could not be checked, and the monitor was asked to warn and go on."""


class GradientMismatchError(GradcheckError, AssertionError):
    """A checked gradient is wrong, or a function's contract is broken; the text is the report's table."""


class NothingProvenError(GradcheckError, AssertionError):
    """No gradient is wrong, and none is proven right, or not all are where that was asked; the text is the table."""
