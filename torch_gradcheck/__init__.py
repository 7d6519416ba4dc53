"""Tells the truth about gradients: `check_module(model, loss_fn, batch)` against float64 centered differences.

Names are imported when they are first used, so that `import torch_gradcheck` costs a training script nothing.

PYTEST_DONT_REWRITE: pytest rewrites the assertions of packages with a plugin, and warns of those imported before it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from torch_gradcheck.version import __version__

if TYPE_CHECKING:
    from torch_gradcheck.check import check_closure, check_function, check_module
    from torch_gradcheck.drop_in.check import gradcheck, gradgradcheck
    from torch_gradcheck.drop_in.failure import GradcheckFailedError
    from torch_gradcheck.errors import (
        GradcheckError,
        GradientMismatchError,
        GradientMismatchWarning,
        InvalidRequestError,
        MisfitError,
        NonDeterministicLossError,
        NonFiniteLossError,
        NonScalarLossError,
        NothingProvenError,
        ProcessGroupError,
    )
    from torch_gradcheck.monitoring.history import GradientHistory, GradientRecord
    from torch_gradcheck.monitoring.monitor import GradientMonitor
    from torch_gradcheck.planting.plant import blind_spots
    from torch_gradcheck.planting.spots import BlindSpot, BlindSpots
    from torch_gradcheck.reporting.comparison.comparison import Comparison
    from torch_gradcheck.reporting.facts import (
        ContractEntry,
        ContractStatus,
        Coordinate,
        Diagnosis,
        DiagnosisKind,
        ParameterReport,
        Status,
        Verdict,
    )
    from torch_gradcheck.reporting.report import Report

__all__ = [
    "BlindSpot",
    "BlindSpots",
    "Comparison",
    "ContractEntry",
    "ContractStatus",
    "Coordinate",
    "Diagnosis",
    "DiagnosisKind",
    "GradcheckError",
    "GradcheckFailedError",
    "GradientHistory",
    "GradientMismatchError",
    "GradientMismatchWarning",
    "GradientMonitor",
    "GradientRecord",
    "InvalidRequestError",
    "MisfitError",
    "NonDeterministicLossError",
    "NonFiniteLossError",
    "NonScalarLossError",
    "NothingProvenError",
    "ParameterReport",
    "ProcessGroupError",
    "Report",
    "Status",
    "Verdict",
    "__version__",
    "blind_spots",
    "check_closure",
    "check_function",
    "check_module",
    "gradcheck",
    "gradgradcheck",
]

_HOMES = {
    "gradcheck": "drop_in.check",
    "gradgradcheck": "drop_in.check",
    "GradcheckFailedError": "drop_in.failure",
    "check_closure": "check",
    "check_function": "check",
    "check_module": "check",
    "GradcheckError": "errors",
    "GradientMismatchError": "errors",
    "GradientMismatchWarning": "errors",
    "InvalidRequestError": "errors",
    "MisfitError": "errors",
    "NonDeterministicLossError": "errors",
    "NonFiniteLossError": "errors",
    "NonScalarLossError": "errors",
    "NothingProvenError": "errors",
    "ProcessGroupError": "errors",
    "Comparison": "reporting.comparison.comparison",
    "ContractEntry": "reporting.facts",
    "ContractStatus": "reporting.facts",
    "Coordinate": "reporting.facts",
    "Diagnosis": "reporting.facts",
    "DiagnosisKind": "reporting.facts",
    "ParameterReport": "reporting.facts",
    "Status": "reporting.facts",
    "Verdict": "reporting.facts",
    "blind_spots": "planting.plant",
    "BlindSpot": "planting.spots",
    "BlindSpots": "planting.spots",
    "GradientHistory": "monitoring.history",
    "GradientMonitor": "monitoring.monitor",
    "GradientRecord": "monitoring.history",
    "Report": "reporting.report",
}


def __getattr__(name: str) -> Any:
    """A public name, from the file it lives in (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
