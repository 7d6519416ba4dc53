"""Tells the truth about gradients: `check_module(model, loss_fn, batch)` against float64 centered differences."""

from torch_gradcheck.check import check_closure, check_module
from torch_gradcheck.errors import (
    GradcheckError,
    GradientMismatchError,
    InvalidRequestError,
    NonDeterministicLossError,
    NonFiniteLossError,
    NonScalarLossError,
)
from torch_gradcheck.facts import Coordinate, Diagnosis, DiagnosisKind, ParameterReport, Status, Verdict
from torch_gradcheck.report import Report
from torch_gradcheck.version import __version__

__all__ = [
    "Coordinate",
    "Diagnosis",
    "DiagnosisKind",
    "GradcheckError",
    "GradientMismatchError",
    "InvalidRequestError",
    "NonDeterministicLossError",
    "NonFiniteLossError",
    "NonScalarLossError",
    "ParameterReport",
    "Report",
    "Status",
    "Verdict",
    "__version__",
    "check_closure",
    "check_module",
]
